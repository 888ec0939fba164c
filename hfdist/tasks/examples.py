"""Examples by index: in memory, mapped from a file, or of a user's own data set."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grain
import jax
import numpy as np

from hfdist.errors import UsageError

Entries = dict[str, np.ndarray]  # leaves (…, one example's shape)


class Examples(abc.ABC):
    """Random access to the examples of a split."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abc.abstractmethod
    def gather(self, places: np.ndarray) -> Entries:
        """The examples at these places, in arrays of shape places.shape + (…)."""

    @property
    def readers(self) -> int:
        """Threads that read ahead of training; 0: what is in memory is there sooner."""
        return 0


@dataclass(frozen=True)
class Arrays(Examples):
    """Examples that are the rows of arrays, in memory or mapped from a file."""

    entries: Mapping[str, np.ndarray]

    @property
    def readers(self):
        return 2 if any(isinstance(a, np.memmap) for a in self.entries.values()) else 0

    def __len__(self):
        return len(next(iter(self.entries.values())))

    def gather(self, places):
        return {name: np.asarray(a[places]) for name, a in self.entries.items()}


@dataclass(frozen=True)
class Elements(Examples):
    """The elements of a Grain data set, each a dictionary of numbers and arrays."""

    dataset: grain.MapDataset

    @property
    def readers(self):
        return 4

    def __len__(self):
        return len(self.dataset)

    def gather(self, places):
        elements: list[Any] = [self.dataset[int(place)] for place in places.ravel()]
        stacked = jax.tree.map(lambda *rows: np.stack(rows), *elements)
        return jax.tree.map(lambda a: a.reshape(*places.shape, *a.shape[1:]), stacked)


def readable(source: Any) -> Examples:
    """What a task's `examples` returned, with its examples by index.

    Raises UsageError for something else.
    """
    if isinstance(source, grain.MapDataset):
        source = Elements(source)
    if not isinstance(source, Examples):
        raise UsageError(
            f"the task's examples are a {type(source).__name__}: return "
            f"hfdist.tasks.examples.Arrays, another Examples, or a grain.MapDataset"
        )
    if not len(source):
        raise UsageError("the task has no examples: give it files with some")
    return source
