"""metrics.jsonl: one JSON object a line.

Training lines, one a step: {"split": "train", "step", "epoch", "loss", "seconds", …}.
Evaluation lines: {"split": "test", "step", "epoch", "loss", "accuracy", "seconds"}.
Numbers read back exactly; non-finite ones are the strings "nan", "inf" and "-inf", so
that every line is valid JSON.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfdist.errors import UsageError

Line = dict[str, Any]
NAME = "metrics.jsonl"
SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class MetricsFile:
    """A run's metrics.jsonl, written on after its first `position` bytes."""

    def __init__(self, run_dir: Path, position: int = 0):
        self._file = (run_dir / NAME).open("a")
        self._file.truncate(position)

    def append(self, lines: Sequence[Line]) -> None:
        """Write the lines, through to the operating system.

        Raises UsageError if the disk does not take them.
        """
        try:
            self._file.write("".join(encode(line) + "\n" for line in lines))
            self._file.flush()
        except OSError as error:
            raise UsageError(
                f"{self._file.name} cannot be written ({error.strerror}): make room, "
                f"and run the same command to continue"
            ) from None

    def close(self) -> None:
        self._file.close()


def sync(run_dir: Path) -> int:
    """Bring the lines to the disk; the file's length, a position to go on from."""
    with (run_dir / NAME).open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def encode(line: Line) -> str:
    """One line of metrics.jsonl, without its newline."""
    special = {
        name: str(value)
        for name, value in line.items()
        if isinstance(value, float) and not math.isfinite(value)
    }
    return json.dumps(line | special)


def read(run_dir: Path, start: int = 0, end: int | None = None) -> list[Line]:
    """The whole lines of bytes start … end, non-finite numbers as floats again.

    Raises UsageError if the file is shorter than that.
    """
    path = run_dir / NAME
    text = path.read_bytes() if path.exists() else b""
    if end is not None and len(text) < end:
        raise UsageError(
            f"{path} has only {len(text):,} of the {end:,} bytes that the checkpoint "
            f"was saved with: put it back, or start in another --run-dir"
        )
    whole, _, _ = text[start:end].rpartition(b"\n")  # a kill may have torn the last
    return [
        {k: SPECIAL.get(v, v) if isinstance(v, str) else v for k, v in line.items()}
        for line in map(json.loads, whole.splitlines())
    ]
