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


class Table(NamedTuple):
    """A line for each contestant."""

    title: str
    header: list[str]
    rows: list[list[Any]]


def tables(contest: Contest, runs: Sequence[Run]) -> list[Table]:
    """The settings, then each target, then the times."""
    settings = [
        [run.contestant.name, run.entrant.settings, len(run.contestant.grid)]
        for run in runs
    ]
    made = [Table("", ["", "settings", "best of"], settings)]
    made += [_to_target(contest, runs, target) for target in contest.targets]
    return [*made, _at_times(contest, runs)] if contest.times else made


def _to_target(contest: Contest, runs: Sequence[Run], target: float) -> Table:
    rows = []
    best = _least(runs, lambda run: _seconds(contest, run, target))
    for run in runs:
        row: list[Any] = [run.contestant.name]
        if at := _reached(contest, run, target):
            gradients = at.gradients if math.isfinite(at.gradients) else None
            row += [at.seconds, round(at.steps), gradients, _ratio(at.seconds, best)]
        rows.append(row + [None] * (5 - len(row)))
    title = f"to a {contest.label} of {target:g}"
    return Table(title, ["", "seconds", "steps", "gradients", "× best"], rows)


def _at_times(contest: Contest, runs: Sequence[Run]) -> Table:
    header, rows = [""], [[run.contestant.name] for run in runs]
    for time in contest.times:
        header += [f"after {time:g} s", "× best"]
        best = _least(runs, lambda run, time=time: _value(contest, run, time))
        for row, run in zip(rows, runs, strict=True):
            value = _value(contest, run, time)
            row += [value, _ratio(value, best)]
    return Table(contest.label, header, rows)


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
            "gradient_equivalents": _or_blank(mark.gradients),
            "gradient_passes": _or_blank(run.passes(mark.gradients)),
            "loss": _or_blank(mark.loss),
            **{f"test_{name}": value for name, value in mark.figures.items()},
        }
        for part, runs in (("race", races), ("grid", trials))
        for run in runs
        for mark in run.marks
    ]
    try:
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


def _or_blank(count: float) -> float | str:
    """What is not known is left blank."""
    return count if math.isfinite(count) else ""


def _ratio(value: float | None, best: float | None) -> float | None:
    return None if value is None or best is None else value / best
