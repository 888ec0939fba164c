"""What is read off the marks of a run, between which the log of a value is linear."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from racing.contest import Entrant
from racing.loop import Mark


class Reached(NamedTuple):
    """Where a run first came to a target."""

    seconds: float
    steps: float
    gradients: float


def reached(marks: Sequence[Mark], quantity: str, target: float) -> Reached | None:
    """The first crossing of the target; None: it was not reached."""
    if marks[0].value(quantity) <= target:
        return _at(marks[0])
    for before, after in pairwise(marks):
        high, low = before.value(quantity), after.value(quantity)
        if low <= target:
            share = 1.0
            if math.isfinite(high) and low > 0:
                share = math.log(high / target) / math.log(high / low)
            ends = zip(_at(before), _at(after), strict=True)
            return Reached(*(a + share * (b - a) for a, b in ends))
    return None


def _at(mark: Mark) -> Reached:
    return Reached(mark.seconds, mark.steps, mark.gradients)


def value_at(marks: Sequence[Mark], quantity: str, seconds: float) -> float | None:
    """The value after so many seconds; None: the run was over before."""
    for before, after in pairwise(marks):
        if before.seconds <= seconds <= after.seconds:
            a, b = before.value(quantity), after.value(quantity)
            if not (math.isfinite(a) and a > 0 and b > 0):
                return b
            share = (seconds - before.seconds) / (after.seconds - before.seconds)
            return a * (b / a) ** share
    return None


def best(
    trials: Sequence[tuple[Entrant, Sequence[Mark]]],
    quantity: str,
    targets: Sequence[float],
) -> Entrant:
    """The entrant that is first at the hardest target that any of them reached.

    Where there are no targets, or none was reached, the one with the least value at
    the end.
    """
    for target in sorted(targets):
        found = [(e, reached(marks, quantity, target)) for e, marks in trials]
        times = [(e, at.seconds) for e, at in found if at]
        if times:
            return min(times, key=lambda pair: pair[1])[0]

    def last(trial):
        value = trial[1][-1].value(quantity)
        return value if math.isfinite(value) else math.inf

    return min(trials, key=last)[0]
