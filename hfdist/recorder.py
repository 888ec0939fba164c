"""From the infos of finished steps to metrics lines, progress and the verdict."""

import math
import time

import numpy as np

from hfdist.config import Config
from hfdist.evaluate import Evaluation
from hfdist.methods.method import Info
from hfdist.metrics import Line, Metrics
from hfdist.processes import is_first
from hfdist.progress import Display
from hfdist.resume import Position


class Recorder:
    """Writes a run's lines and keeps its clock, which counts training alone."""

    def __init__(
        self,
        config: Config,
        start: Position,
        last: int,
        steps_per_epoch: int,
    ):
        assert config.run_dir is not None
        shown = is_first()
        self._metrics = Metrics(
            config.run_dir, start.metrics_bytes, config.tensorboard, shown
        )
        self._display = Display(start.step, last, type(config.method).__name__, shown)
        self._max_rejected = config.max_rejected
        self._steps_per_epoch = steps_per_epoch
        self._compile_seconds: float | None = None  # until it is written
        self._pending: tuple[int, Info] | None = None  # dispatched, not yet recorded
        self._losses: list[float] = []  # of the epoch under way
        self._started = 0.0
        self._rejected_in_a_row = 0
        self.last, self.step, self.seconds = last, 0, 0.0
        self.rejected = self.indefinite = 0
        self.test: Evaluation | None = None
        for line in self._metrics.earlier:
            if line["split"] == "train":
                self._count(line)

    def compiled(self, seconds: float) -> None:
        """Note what compilation took, for the next line."""
        self._compile_seconds = seconds

    def start(self) -> None:
        """Start the clock, before the first step or after an evaluation."""
        self._started = time.perf_counter() - self.seconds

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

    def at_epoch_end(self, step: int) -> bool:
        """Whether an epoch, or the run, ends with this step."""
        return step == self.last or step % self._steps_per_epoch == 0

    def _record(self, first: int, infos: Info) -> None:
        # The seconds of steps that ran in one dispatch are spaced evenly over it.
        columns = {name: np.asarray(a) for name, a in infos._asdict().items()}
        count, before = len(columns["loss"]), self.seconds
        now = time.perf_counter() - self._started
        columns["seconds"] = np.linspace(before, now, count + 1)[1:]
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        lines = []
        for step, row in enumerate(rows, first):
            values = dict(zip(columns, row, strict=True))
            line = self._line("train", step, values.pop("loss"), values.pop("seconds"))
            line |= values
            self._count(line)
            if self._compile_seconds is not None:
                line["compile_seconds"] = self._compile_seconds
                self._compile_seconds = None
            lines.append(line)
        self._metrics.append(lines)
        rate = count / max(now - before, 1e-9)
        self._display.advance(first + count - 1, lines[-1]["loss"], rate)

    def evaluation(self, test: Evaluation) -> None:
        """Record an evaluation after the last step recorded."""
        self.test = test
        line = self._line("test", self.step, test.loss, self.seconds)
        line["accuracy"] = test.accuracy
        self._metrics.append([line])
        if not self._display.live:
            self._display.say(
                f"epoch {line['epoch']}  step {self.step}  "
                f"train loss {self.train_loss:.4f}  test loss {test.loss:.4f}  "
                f"accuracy {test.accuracy:.4f}  {self.seconds:.1f} s"
            )

    def position(self) -> Position:
        """Where a run continues that is saved now, its lines safe on the disk."""
        return Position(self.step, self._metrics.sync())

    def close(self) -> None:
        """Close the metrics and leave the display as it stands."""
        self._metrics.close()
        self._display.close()

    @property
    def diverged(self) -> bool:
        """Whether the last max_rejected updates were all rejected."""
        return self._rejected_in_a_row >= self._max_rejected

    @property
    def train_loss(self) -> float:
        """Mean finite loss of the last epoch's steps so far."""
        losses = [loss for loss in self._losses if math.isfinite(loss)]
        return float(np.mean(losses)) if losses else float("nan")

    def _line(self, split: str, step: int, loss: float, seconds: float) -> Line:
        epoch = (step - 1) // self._steps_per_epoch + 1
        return {
            "split": split,
            "step": step,
            "epoch": epoch,
            "loss": loss,
            "seconds": seconds,
        }

    def _count(self, line: Line) -> None:
        if (line["step"] - 1) % self._steps_per_epoch == 0:
            self._losses = []
        self._losses.append(line["loss"])
        self.step, self.seconds = line["step"], line["seconds"]
        self.indefinite += line["indefinite"]
        self.rejected += not line["accepted"]
        self._rejected_in_a_row = 0 if line["accepted"] else self._rejected_in_a_row + 1
