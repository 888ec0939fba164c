"""From the infos of finished steps to metrics lines, progress and the result."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hfdist.cluster.processes import is_first
from hfdist.methods.method import Info
from hfdist.runs import metrics
from hfdist.runs.config import Config
from hfdist.runs.evaluate import Evaluation
from hfdist.runs.metrics import Line
from hfdist.runs.progress import Display, digits, words
from hfdist.runs.resume import Position
from hfdist.runs.sinks import open_sinks
from hfdist.tasks.passes import Passes


@dataclass
class Result:
    """How a run stands, and in the end how it ended."""

    run_dir: Path
    steps: int = 0  # updates made, over all the run's continuations
    train_loss: float = math.nan  # mean over the last epoch's steps; of those finite
    test: Evaluation | None = None
    seconds: float = 0.0  # training alone: neither compilation nor evaluation
    compile_seconds: float = 0.0
    rejected: int = 0  # steps not applied
    indefinite: int = 0  # steps whose solver met negative curvature
    diverged: bool = False  # the last max_rejected updates were all rejected
    stopped: bool = False  # by a signal, before its last step


class Recorder:
    """Writes a run's lines and keeps its clock, which counts training alone."""

    def __init__(self, config: Config, start: Position, last: int, passes: Passes):
        assert config.run_dir is not None
        self.result, self.last = Result(config.run_dir), last
        self._max_rejected = config.max_rejected
        self._passes, self._grows = passes, bool(config.batch_growth)
        self._evaluation_epochs = config.evaluation_epochs
        self._rejected_in_a_row = self._finite = 0
        self._loss_sum = self._started = 0.0
        self._pending: tuple[int, Info] | None = None  # dispatched, not yet recorded
        self._note: Line = {}  # for the next line
        earlier = metrics.read(config.run_dir, end=start.metrics_bytes)
        self._count([line for line in earlier if line["split"] == "train"])
        # One process writes for all.
        self._sinks = []
        if is_first():
            where = config.run_dir, start.step, start.metrics_bytes
            self._sinks = open_sinks(config, *where)
        method = type(config.method).__name__
        self.display = Display(start.step, last, method, shown=is_first())

    def compiled(self, seconds: float) -> None:
        """Note what compilation took."""
        self.result.compile_seconds = self._note["compile_seconds"] = seconds

    def start(self) -> None:
        """Start the clock, before the first step or after an evaluation."""
        self._started = time.perf_counter() - self.result.seconds

    def dispatched(self, first: int, infos: Info) -> None:
        """Note that the steps first, first + 1, … are being computed.

        The steps dispatched before are recorded meanwhile.
        """
        self.catch_up()
        self._pending = first, infos

    def catch_up(self) -> None:
        """Wait for the steps dispatched, and record them."""
        if self._pending:
            self._record(*self._pending)
            self._pending = None

    def is_evaluated(self, step: int) -> bool:
        """Whether the run, or an epoch after which it is evaluated, ends here."""
        epochs, position, _ = self._passes.place(step)
        due = position == 0 and epochs % self._evaluation_epochs == 0
        return due or step == self.last

    def evaluation(self, test: Evaluation) -> None:
        """Record an evaluation after the last step recorded."""
        self.result.test, step = test, self.result.steps
        line = self._line("test", step, test.loss, self.result.seconds)
        self._append([line | test.figures])
        shown = {"train loss": self.result.train_loss, "test loss": test.loss}
        shown |= {words(name): figure for name, figure in test.figures.items()}
        figures = "  ".join(f"{name} {digits(x)}" for name, x in shown.items())
        self.display.epoch(
            f"epoch {line['epoch']}  step {step}  {figures}  "
            f"{self.result.seconds:.1f} s"
        )

    def position(self) -> Position:
        """Where a run continues that is saved now, its lines safe on the disk."""
        written = self._sinks[0].sync() if self._sinks else 0  # metrics.jsonl
        return Position(self.result.steps, written)

    def close(self) -> None:
        """Close the sinks and leave the display as it stands."""
        self.display.close()
        for sink in self._sinks:
            sink.close()

    def _record(self, first: int, infos: Info) -> None:
        # The seconds of steps that ran in one dispatch are spaced evenly over it.
        columns = {name: np.asarray(a).tolist() for name, a in infos._asdict().items()}
        before, now = self.result.seconds, time.perf_counter() - self._started
        losses = columns.pop("loss")
        seconds = np.linspace(before, now, len(losses) + 1)[1:].tolist()
        lines = [
            self._line("train", first + i, loss, seconds[i])
            | {name: column[i] for name, column in columns.items()}
            for i, loss in enumerate(losses)
        ]
        if self._grows:
            for line in lines:
                line["batch_size"] = self._passes.place(line["step"] - 1).size
        lines[0] |= self._note
        self._note = {}
        self._count(lines)
        self._append(lines)
        rate = len(lines) / max(now - before, 1e-9)
        self.display.advance(self.result.steps, losses[-1], rate)

    def _append(self, lines: list[Line]) -> None:
        for sink in self._sinks:
            sink.append(lines)

    def _line(self, split: str, step: int, loss: float, seconds: float) -> Line:
        epoch = self._passes.place(step - 1).epoch + 1
        return dict(split=split, step=step, epoch=epoch, loss=loss, seconds=seconds)

    def _count(self, lines: list[Line]) -> None:
        result = self.result
        for line in lines:
            if self._passes.place(line["step"] - 1).position == 0:
                self._loss_sum, self._finite = 0.0, 0
            if math.isfinite(line["loss"]):
                self._loss_sum += line["loss"]
                self._finite += 1
            accepted = line["accepted"]
            self._rejected_in_a_row = 0 if accepted else self._rejected_in_a_row + 1
            result.rejected += not accepted
            result.indefinite += line["indefinite"]
            result.steps, result.seconds = line["step"], line["seconds"]
        result.train_loss = self._loss_sum / self._finite if self._finite else math.nan
        result.diverged = self._rejected_in_a_row >= self._max_rejected
