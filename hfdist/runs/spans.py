"""Which steps run in one scan."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate


class Spans(Sequence):
    """The scans (first batch, count) still to run after step `start`, up to `last`.

    Each stretch from one evaluation to the next is cut every `most` steps, whatever the
    start, so that a run that continues runs the same programs. One stretch begins at
    step `origin`, no later than the start. They are counted, not held: a run of a
    billion epochs begins at once.
    """

    def __init__(self, start: int, last: int, stretch: int, most: int, origin: int = 0):
        self._start, self._last, self._origin = start, last, origin
        self._length, self._most = stretch, most
        self._cells = -(-stretch // most)
        self._first = self._cell(start)

    def __len__(self) -> int:
        done = self._start >= self._last
        return 0 if done else self._cell(self._last - 1) - self._first + 1

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        stretch, part = divmod(self._first + index, self._cells)
        begin = self._origin + stretch * self._length
        first = max(begin + part * self._most, self._start)
        end = begin + min((part + 1) * self._most, self._length)
        return first, min(end, self._last) - first

    def distinct(self) -> list[tuple[int, int]]:
        """A scan of each length: a stretch's, and those at the start and the end."""
        indices = {*range(min(self._cells + 1, len(self))), len(self) - 1} - {-1}
        return list({self[i][1]: self[i] for i in sorted(indices)}.values())

    def _cell(self, step: int) -> int:
        stretch, position = divmod(step - self._origin, self._length)
        return stretch * self._cells + position // self._most


class Joined(Sequence):
    """The scans of several Spans, one after the other."""

    def __init__(self, parts: Sequence[Spans]):
        self._parts = [part for part in parts if part]
        self._ends = list(accumulate(map(len, self._parts), initial=0))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self._ends, index) - 1
        return self._parts[part][index - self._ends[part]]

    def distinct(self) -> list[tuple[int, int]]:
        """A scan of each length of each part."""
        return [span for part in self._parts for span in part.distinct()]
