"""metrics.jsonl: one JSON object a line, and the same numbers for TensorBoard.

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


class Metrics:
    """The sinks of a run's metrics, continued after the first `position` bytes.

    `earlier` holds the lines there; what follows, perhaps torn, will be written again
    and is dropped. With `writes` off, nothing is written or dropped: one process of a
    run writes for all. Raises UsageError if the file is shorter than that.
    """

    def __init__(
        self,
        run_dir: Path,
        position: int = 0,
        tensorboard: bool = False,
        writes: bool = True,
    ):
        path = run_dir / "metrics.jsonl"
        self.earlier = _up_to(path, position) if position else []
        self._file = self._board = None
        if writes:
            self._file = path.open("a")
            self._file.truncate(position)
            step = self.earlier[-1]["step"] if self.earlier else 0
            folder = run_dir / "tensorboard"
            self._board = _tensorboard(folder, step) if tensorboard else None

    def append(self, lines: Sequence[Line]) -> None:
        """Write the lines, through to the operating system.

        Raises UsageError if the disk does not take them.
        """
        if self._file:
            try:
                self._file.write("".join(encode(line) + "\n" for line in lines))
                self._file.flush()
            except OSError as error:
                raise UsageError(
                    f"{self._file.name} cannot be written ({error.strerror}): make "
                    f"room, and run the same command to continue"
                ) from None
        if self._board:
            for line in lines:
                for name in line.keys() - {"split", "step"}:
                    tag = f"{line['split']}/{name}"
                    self._board.add_scalar(tag, line[name], line["step"])

    def sync(self) -> int:
        """Bring the lines to the disk; the file's length, a position to go on from."""
        if self._file is None:
            return 0
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        if self._file:
            self._file.close()
        if self._board:
            self._board.close()


def encode(line: Line) -> str:
    """One line of metrics.jsonl, without its newline."""
    return json.dumps({name: _finite(value) for name, value in line.items()})


def read(run_dir: Path) -> list[Line]:
    """The lines of a run, with non-finite numbers as floats again."""
    return _decoded((run_dir / "metrics.jsonl").read_bytes())


def _decoded(text: bytes) -> list[Line]:
    special = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
    lines = [json.loads(line) for line in text.splitlines()]
    return [
        {k: special.get(v, v) if isinstance(v, str) else v for k, v in line.items()}
        for line in lines
    ]


def _up_to(path: Path, position: int) -> list[Line]:
    text = path.read_bytes()[:position] if path.exists() else b""
    if len(text) < position:
        raise UsageError(
            f"{path} has only {len(text):,} of the {position:,} bytes that the "
            f"checkpoint was saved with: put it back, or start in another --run-dir"
        )
    return _decoded(text)


def _finite(value: Any) -> Any:
    return (
        str(value) if isinstance(value, float) and not math.isfinite(value) else value
    )


def _tensorboard(folder: Path, step: int):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UsageError(
            "--tensorboard needs the package tensorboardX: "
            "pip install 'hfdist[tensorboard]'"
        ) from None
    return SummaryWriter(str(folder), purge_step=step + 1)
