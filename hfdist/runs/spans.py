"""Which steps run in one scan."""

from collections.abc import Sequence


class Spans(Sequence):
    """The scans (first batch, count) still to run after step `start`, up to `last`.

    Each stretch from one evaluation to the next is cut every `most` steps, whatever the
    start, so that a run that continues runs the same programs. They are counted, not
    held: a run of a billion epochs begins at once.
    """

    def __init__(self, start: int, last: int, stretch: int, most: int):
        self._start, self._last = start, last
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
        begin = stretch * self._length
        first = max(begin + part * self._most, self._start)
        end = begin + min((part + 1) * self._most, self._length)
        return first, min(end, self._last) - first

    def counts(self) -> set[int]:
        """The lengths that occur: a stretch's, and those at the start and the end."""
        return {
            self[i][1]
            for i in {*range(min(self._cells + 1, len(self))), len(self) - 1}
            if i >= 0
        }

    def _cell(self, step: int) -> int:
        stretch, position = divmod(step, self._length)
        return stretch * self._cells + position // self._most
