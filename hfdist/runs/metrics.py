"""metrics.jsonl: one JSON object a line.

Training lines, one a step: {"split": "train", "step", "epoch", "loss", "seconds", …},
with "batch_size" if the run's batches grow.
Evaluation lines: {"split": "test", "step", "epoch", "loss", "seconds", …}, with the
task's figures, such as "accuracy".
Numbers read back exactly; non-finite ones are the strings "nan", "inf" and "-inf", so
that every line is valid JSON.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hfdist.errors import UsageError
from hfdist.runs.files import open_regular, read_bytes

Line = dict[str, Any]
NAME = "metrics.jsonl"
SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
# What a run that continues, and every tool, reads from a line.
EVERY = ("step", "epoch", "loss", "seconds")
NUMBERS = {"train": (*EVERY, "accepted", "indefinite"), "test": EVERY}
RESERVED = {"split", *EVERY}  # no task's figure is named so


class MetricsFile:
    """A run's metrics.jsonl, written on after its first `position` bytes.

    Nothing is cut to 0: lines that no checkpoint stands for are moved to
    RUN_DIR/unsound. Raises UsageError, here as later, if the file is not one that can
    be written, or is no longer there.
    """

    def __init__(self, run_dir: Path, position: int = 0):
        self._path = run_dir / NAME
        with self._explained():
            if not position and self._path.exists() and self._path.stat().st_size:
                _set_aside(self._path)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
            self._file = os.fdopen(open_regular(self._path, flags), "a")
            self._file.truncate(position)

    def append(self, lines: Sequence[Line]) -> None:
        """Write the lines, through to the operating system."""
        with self._explained():
            self._check_there()
            self._file.write("".join(encode(line) + "\n" for line in lines))
            self._file.flush()

    def sync(self) -> int:
        """Bring the lines to the disk; the file's length, a position to go on from."""
        with self._explained():
            self._check_there()
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file; a line that the disk did not take was reported before."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _check_there(self) -> None:
        # A file that was deleted or replaced takes lines that nobody will read.
        if not os.path.samestat(os.fstat(self._file.fileno()), self._path.lstat()):
            raise OSError(None, "another file has taken its place")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"{self._path} cannot be written ({error.strerror}): make room, or put "
                f"it back, and run the same command to continue"
            ) from None


def _set_aside(path: Path) -> None:
    aside = path.parent / "unsound" / f"{NAME}-{time.time_ns()}"
    aside.parent.mkdir(exist_ok=True)
    path.replace(aside)


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

    Raises UsageError if the file cannot be read, is shorter than that, has no end of a
    line at `end`, or holds something else than lines of metrics.
    """
    path = run_dir / NAME
    text = _read_bytes(path)
    if end is not None and len(text) < end:
        raise UsageError(
            f"{path} has only {len(text):,} of the {end:,} bytes that the checkpoint "
            f"was saved with: put it back, or start in another --run-dir"
        )
    if end and text[end - 1 : end] != b"\n":
        raise UsageError(
            f"{path} has no end of a line at byte {end:,}, where the checkpoint has "
            f"it: put the file back, or start in another --run-dir"
        )
    whole, _, _ = text[start:end].rpartition(b"\n")  # a kill may have torn the last
    return [_decode(path, n, line) for n, line in enumerate(whole.splitlines(), 1)]


def _read_bytes(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}): put it back, or start in "
            f"another --run-dir"
        ) from None


def _decode(path: Path, number: int, text: bytes) -> Line:
    try:
        line = json.loads(text)
        line = {
            k: SPECIAL.get(v, v) if isinstance(v, str) else v for k, v in line.items()
        }
        needed = NUMBERS[line["split"]]
        if not all(isinstance(line[name], int | float) for name in needed):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageError(
            f"{path} is damaged: line {number} is no line of metrics; put the file "
            f"back, or start in another --run-dir"
        ) from None
    return line
