"""The result of a race: a table for people, figures for programs, a CSV file."""

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measurement import Measurement
from hfdist.errors import UsageError
from racing.contest import Contest, Contestant, Entrant
from racing.loop import Mark
from racing.reading import Reached, reached, value_at


class Run(NamedTuple):
    """An entrant's marks, in the race or in the search of a grid."""

    contestant: Contestant
    entrant: Entrant
    marks: list[Mark]
    examples: int  # to train on

    def passes(self, count: float) -> float:
        """Batches, or gradients of them, in passes over the training examples."""
        return count * self.entrant.batch_size / self.examples


def table(contest: Contest, runs: Sequence[Run]) -> tuple[list[str], list[list[Any]]]:
    """A header, and a row for each contestant."""
    header = ["", "settings"]
    for target in contest.targets:
        header += [f"s to {target:g}", "steps", "gradients", "× best"]
    for time in contest.times:
        header += [f"after {time:g} s", "× best"]
    return header, [_row(contest, runs, run) for run in runs]


def _row(contest: Contest, runs: Sequence[Run], run: Run) -> list[Any]:
    row: list[Any] = [run.contestant.name, run.entrant.settings]
    for target in contest.targets:
        at = _reached(contest, run, target)
        seconds = at.seconds if at else None
        best = _least(runs, lambda r, t=target: _seconds(contest, r, t))
        steps = round(at.steps) if at else None
        row += [seconds, steps, at.gradients if at else None, _ratio(seconds, best)]
    for time in contest.times:
        value = _value(contest, run, time)
        best = _least(runs, lambda r, t=time: _value(contest, r, t))
        row += [value, _ratio(value, best)]
    return row


def measurements(contest: Contest, runs: Sequence[Run]) -> list[Measurement]:
    """The figures of the table by name; NaN where a target was not reached."""
    measured = []
    for run in runs:
        name = run.contestant.name
        for target in contest.targets:
            at = _reached(contest, run, target) or Reached(*[math.nan] * 3)
            measured += [
                Measurement(f"{name}: {what} to {target:g}", value, None, unit)
                for what, value, unit in (
                    ("time", at.seconds, "s"),
                    ("steps", at.steps, "steps"),
                    ("cost", at.gradients, "gradients"),
                )
            ]
        for time in contest.times:
            value = _value(contest, run, time)
            value = math.nan if value is None else value
            what = f"{name}: {contest.quantity} after {time:g} s"
            measured.append(Measurement(what, value, None, contest.quantity))
    return measured


def write_csv(races: Iterable[Run], trials: Iterable[Run], path: Path) -> None:
    """A line for each mark, of the grids' runs too. Raises UsageError if it cannot."""
    lines = [
        {
            "part": part,
            "contestant": run.contestant.name,
            "settings": run.entrant.settings,
            "seconds": mark.seconds,
            "steps": mark.steps,
            "epochs": run.passes(mark.steps),
            "gradient_equivalents": mark.gradients,
            "gradient_passes": run.passes(mark.gradients),
            "loss": mark.loss,
            **{f"test_{name}": value for name, value in mark.figures.items()},
        }
        for part, runs in (("race", races), ("grid", trials))
        for run in runs
        for mark in run.marks
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}): give --out another folder"
        ) from None


def _reached(contest: Contest, run: Run, target: float) -> Reached | None:
    return reached(run.marks, contest.quantity, target)


def _seconds(contest: Contest, run: Run, target: float) -> float | None:
    at = _reached(contest, run, target)
    return at.seconds if at else None


def _value(contest: Contest, run: Run, time: float) -> float | None:
    return value_at(run.marks, contest.quantity, time)


def _least(runs: Sequence[Run], of: Callable[[Run], float | None]) -> float | None:
    """The least of the first-order contestants' figures."""
    figures = [of(run) for run in runs if run.contestant.first_order]
    return min((f for f in figures if f is not None), default=None)


def _ratio(value: float | None, best: float | None) -> float | None:
    return None if value is None or best is None else value / best
