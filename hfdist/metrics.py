"""metrics.jsonl: one JSON object a line, and the same numbers for TensorBoard.

Training lines, one a step: {"split": "train", "step", "epoch", "loss", "seconds", …}.
Evaluation lines: {"split": "test", "step", "epoch", "loss", "accuracy", "seconds"}.
Numbers read back exactly; non-finite ones are the strings "nan", "inf" and "-inf", so
that every line is valid JSON.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfdist.errors import UsageError

Line = dict[str, Any]


class Metrics:
    """The sinks of a run's metrics, continued after a step (0: from the start).

    `earlier` holds the lines up to that step; later ones, which will be written again,
    are dropped. With `writes` off, nothing is written or dropped: one process of a run
    writes for all.
    """

    def __init__(
        self,
        run_dir: Path,
        step: int = 0,
        tensorboard: bool = False,
        writes: bool = True,
    ):
        path = run_dir / "metrics.jsonl"
        self.earlier = _up_to(path, step) if path.exists() else []
        self._file = self._board = None
        if writes:
            _replace(path, self.earlier)
            self._file = path.open("a")
            self._board = _tensorboard(run_dir / "tensorboard") if tensorboard else None

    def append(self, lines: Sequence[Line]) -> None:
        """Write the lines, through to the operating system."""
        if self._file:
            self._file.write(_text(lines))
            self._file.flush()
        if self._board:
            for line in lines:
                for name in line.keys() - {"split", "step"}:
                    tag = f"{line['split']}/{name}"
                    self._board.add_scalar(tag, line[name], line["step"])

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
    return _read(run_dir / "metrics.jsonl")


def _read(path: Path) -> list[Line]:
    special = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
    with path.open() as file:
        lines = [json.loads(line) for line in file]
    return [
        {k: special.get(v, v) if isinstance(v, str) else v for k, v in line.items()}
        for line in lines
    ]


def _up_to(path: Path, step: int) -> list[Line]:
    return [line for line in _read(path) if line["step"] <= step]


def _replace(path: Path, lines: Sequence[Line]) -> None:
    part = path.with_suffix(".part")
    part.write_text(_text(lines))
    part.replace(path)


def _text(lines: Sequence[Line]) -> str:
    return "".join(encode(line) + "\n" for line in lines)


def _finite(value: Any) -> Any:
    return (
        str(value) if isinstance(value, float) and not math.isfinite(value) else value
    )


def _tensorboard(folder: Path):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UsageError(
            "--tensorboard needs the package tensorboardX: "
            "pip install 'hfdist[tensorboard]'"
        ) from None
    return SummaryWriter(str(folder))
