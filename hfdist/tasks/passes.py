"""Where the batches of a run lie in its passes over the examples.

Batches are numbered from 0. One of another size goes on where the one before it ended,
so that a pass takes every example once, whatever the sizes of its batches.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple


class Place(NamedTuple):
    """Where a batch begins, and how many rows it has."""

    epoch: int  # passes completed before it
    position: int  # examples of this pass before it
    size: int  # rows; of the last batch in a pass some may be padding


class Leg(NamedTuple):
    """The batches of one size, from the first of them on."""

    first: int  # number of the first
    start: Place  # of the first
    examples: int  # in a pass

    @property
    def per_epoch(self) -> int:
        """Batches in a whole pass."""
        return -(-self.examples // self.start.size)

    def end(self, epochs: int) -> int:
        """Batches of the run when so many passes, more than at the start, are over."""
        rest = -(-(self.examples - self.start.position) // self.start.size)
        return self.first + rest + (epochs - self.start.epoch - 1) * self.per_epoch

    def place(self, number: int) -> Place:
        """Where a batch of the leg begins."""
        epoch, position, size = self.start
        turn = self.end(epoch + 1)
        if number < turn:
            return Place(epoch, position + (number - self.first) * size, size)
        epochs, index = divmod(number - turn, self.per_epoch)
        return Place(epoch + 1 + epochs, index * size, size)


class Passes:
    """The places of all batches: of batch_size, and of the sizes that they grow to.

    growth has pairs (number, size), in the order of their numbers: from the batch of
    that number on batches are of that size.
    """

    def __init__(
        self, examples: int, batch_size: int, growth: Sequence[tuple[int, int]] = ()
    ):
        self.legs = [Leg(0, Place(0, 0, batch_size), examples)]
        for first, size in growth:
            start = self.legs[-1].place(first)._replace(size=size)
            self.legs.append(Leg(first, start, examples))
        self._changes = [leg.first for leg in self.legs[1:]]

    def place(self, number: int) -> Place:
        """Where the batch of this number begins."""
        return self.legs[bisect_right(self._changes, number)].place(number)

    def steps(self, epochs: int) -> int:
        """Batches in the first so many passes, at least one."""
        for leg, change in zip(self.legs, self._changes, strict=False):
            if leg.end(epochs) <= change:
                return leg.end(epochs)
        return self.legs[-1].end(epochs)
