"""A race of optimisers: one process, the same params, the same seconds of training."""

import argparse
import math
import os
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.measurement import Measurement
from drawings import races
from hfdist.checks import check_choice
from hfdist.choices import choices, chosen
from hfdist.errors import UsageError
from hfdist.runs.progress import digits, print_table, words
from racing import problems
from racing.contest import Contest, Contestant, Entrant
from racing.loop import Course, Limits, course, run
from racing.reading import best
from racing.standings import Run, measurements, tables, write_csv

# In a grid: a time to a target is coarser, and evaluations take as long as training.
GRID_SPACING = 1.2


class Raced(NamedTuple):
    """A race that is over."""

    contest: Contest
    runs: list[Run]
    files: list[Path]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("--problem", required=True, help=", ".join(choices(problems)))
    add("--seconds", type=float, help="training of each contestant")
    add("--grid-seconds", type=float, help="training of each point of a grid")
    add("--seed", type=int, default=0, help="of the params and the batches")
    add("--contestants", metavar="A,B", help="these alone, by their names")
    add("--out", type=Path, default=Path("runs/race"), metavar="DIR")


def report(arguments: argparse.Namespace) -> Raced | list[Measurement]:
    """The race; for JSON its figures. The CSV and the figure are written."""
    raced = race(arguments)
    return measurements(raced.contest, raced.runs) if arguments.json else raced


def show(raced: Raced) -> None:
    """Tables for people."""
    device = jax.devices()[0].device_kind
    print(f"{device}, {os.cpu_count()} cores, jax {jax.__version__}")
    for title, header, rows in tables(raced.contest, raced.runs):
        print_table(rows, header, title, justify="right")
    if raced.contest.targets:
        print("gradients: operations over those of the gradient of one batch")
    print("× best: over the best first-order one")
    print(f"Written: {', '.join(map(str, raced.files))}")


def race(arguments: argparse.Namespace) -> Raced:
    """Search the grids and run the best of each, one contestant after the other.

    The CSV is written anew after each, so that a race cut short leaves its first part.
    """
    contest = _contest(arguments)
    prefix = _prefix(arguments)
    runs, trials, table_path = [], [], prefix.with_suffix(".csv")
    with jax.enable_x64(contest.config.dtype == "float64"):
        ground = course(contest, arguments.seed)
        for contestant in contest.contestants:
            tried = _tried(contest, ground, contestant)
            trials += tried
            runs.append(_raced(contest, ground, contestant, tried))
            write_csv(runs, trials, table_path)
    curves = {run.contestant.name: _curve(contest, run) for run in runs}
    lines = contest.targets, contest.times
    figures = races.draw(curves, contest.label, *lines, prefix)
    return Raced(contest, runs, [table_path, *figures])


def _tried(contest: Contest, ground: Course, contestant: Contestant) -> list[Run]:
    """The runs of a grid; none of a single entrant."""
    if len(contestant.grid) == 1:
        return []
    limits = Limits(
        seconds=contest.grid_seconds,
        spacing=max(GRID_SPACING, contest.spacing) if contest.targets else math.inf,
        quantity=contest.quantity,
        enough=min(contest.targets, default=-math.inf),
    )
    return [_run(ground, contestant, e, limits, "grid") for e in contestant.grid]


def _raced(
    contest: Contest, ground: Course, contestant: Contestant, tried: list[Run]
) -> Run:
    """The run of the best of the grid."""
    pairs = [(trial.entrant, trial.marks) for trial in tried]
    entrant = contestant.grid[0]
    if pairs:
        entrant = best(pairs, contest.quantity, contest.targets)
    limits = Limits(contest.seconds, contest.spacing, contest.times, contest.quantity)
    return _run(ground, contestant, entrant, limits, "race")


def _run(
    ground: Course, contestant: Contestant, entrant: Entrant, limits: Limits, part: str
) -> Run:
    """A run, said on stderr when it is over."""
    marks = run(ground, entrant, limits)
    end = marks[-1]
    print(
        f"{part}: {contestant.name}, {entrant.settings}: {words(limits.quantity)} "
        f"{digits(end.value(limits.quantity))} after {end.steps:,} steps, "
        f"{end.seconds:.3g} s",
        file=sys.stderr,
    )
    return Run(contestant, entrant, marks, len(ground.examples))


def _curve(contest: Contest, run: Run) -> races.Curve:
    seconds = [mark.seconds for mark in run.marks]
    passes = [run.passes(mark.gradients) for mark in run.marks]
    values = [mark.value(contest.quantity) for mark in run.marks]
    return np.array(seconds), np.array(passes), np.array(values)


def _contest(arguments: argparse.Namespace) -> Contest:
    """The contest of a problem as the options have it."""
    contest: Contest = chosen("--problem", arguments.problem, problems)()
    wanted = arguments.contestants
    by_name = {one.name: one for one in contest.contestants}
    names = list(by_name) if wanted is None else wanted.split(",")
    for name in names:
        check_choice("--contestants", name, tuple(by_name))
    seconds = _seconds("--seconds", arguments.seconds, contest.seconds)
    share = _seconds("--grid-seconds", arguments.grid_seconds, contest.grid_seconds)
    times = tuple(time for time in contest.times if time <= seconds)
    return contest._replace(
        contestants=tuple(one for one in contest.contestants if one.name in names),
        seconds=seconds,
        grid_seconds=share,
        times=times or (seconds,) * bool(contest.times),  # of a shorter race, its end
    )


def _seconds(option: str, given: float | None, default: float) -> float:
    if given is None:
        return default
    if not 0 < given < math.inf:
        raise UsageError(f"{option} is {given:g}: use a number of seconds above 0")
    return given


def _prefix(arguments: argparse.Namespace) -> Path:
    """What the files' names begin with, in a folder that is there."""
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out {arguments.out} cannot be a folder ({error.strerror}): give another"
        ) from None
    return arguments.out / f"race-{arguments.problem}"
