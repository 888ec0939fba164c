"""Where a run's metrics lines go: a list of sinks with append(lines) and close()."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfdist.errors import UsageError
from hfdist.runs.config import Config, to_json
from hfdist.runs.files import read_text, replace_text
from hfdist.runs.metrics import Line, MetricsFile, read


def open_sinks(config: Config, run_dir: Path, step: int, position: int) -> list[Any]:
    """The sinks that the config asks for, of a run that goes on after a step.

    position is the length of metrics.jsonl there. Raises UsageError for a package that
    is not installed, or cannot start.
    """
    others = []
    if config.tensorboard:
        others.append(TensorBoard(run_dir / "tensorboard", step))
    if config.wandb:
        others.append(WandB(config, run_dir, read(run_dir, position)))
    return [MetricsFile(run_dir, position), *others]


class TensorBoard:
    """Event files; what was written after the step is marked as replaced."""

    def __init__(self, folder: Path, step: int):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise _missing("tensorboardX", "tensorboard") from None
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def append(self, lines: Sequence[Line]) -> None:
        for line in lines:
            for tag, value in _tagged(line).items():
                self._writer.add_scalar(tag, value, line["step"])

    def close(self) -> None:
        self._writer.close()


class WandB:
    """One W&B run, whose id the run directory keeps, however often it is continued.

    W&B takes nothing back. So the lines that it has, but that come again because they
    follow the newest checkpoint, are not sent twice.
    """

    def __init__(self, config: Config, run_dir: Path, sent: Sequence[Line]):
        try:
            import wandb  # pyright: ignore[reportMissingImports]: not in the lock
        except ImportError:
            raise _missing("wandb", "wandb") from None
        known = run_dir / "wandb-id"
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "hfdist"),
                dir=run_dir,
                name=run_dir.name,
                id=read_text(known) if known.exists() else None,
                resume="allow",
                config=to_json(config),
                allow_val_change=True,  # by a continuation: how long to train, …
            )
        except wandb.Error as error:
            raise UsageError(
                f"--wandb cannot start ({error}): run `wandb login` once, or set "
                f"WANDB_MODE=offline"
            ) from None
        replace_text(known, self._run.id)
        self._sent = {(line["split"], line["step"]) for line in sent}

    def append(self, lines: Sequence[Line]) -> None:
        for line in lines:
            if (line["split"], line["step"]) not in self._sent:
                self._run.log(_tagged(line), step=line["step"])

    def close(self) -> None:
        self._run.finish()


def _tagged(line: Line) -> dict[str, Any]:
    """{"train/loss": 0.2, …}."""
    names = line.keys() - {"split", "step"}
    return {f"{line['split']}/{name}": line[name] for name in names}


def _missing(package: str, extra: str) -> UsageError:
    return UsageError(
        f"--{extra} needs the package {package}: pip install 'hfdist[{extra}]'"
    )
