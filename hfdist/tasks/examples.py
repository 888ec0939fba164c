"""Examples by index: in memory, mapped from a file, or of a user's own data set."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import grain
import jax
import numpy as np

from hfdist.checks import shown
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

    def __post_init__(self):
        rows = {}
        for name, array in self.entries.items():
            if not getattr(array, "shape", ()):
                raise UsageError(
                    f"entry {name!r} of the examples is no array with a row for each "
                    f"of them: make it one, by numpy.asarray"
                )
            rows[name] = len(array)
        if len(set(rows.values())) != 1:
            raise UsageError(
                f"the entries of the examples have {rows or 'no'} rows: give each the "
                f"same number, a row for each example"
            )

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
        elements = [self._element(int(place)) for place in places.ravel()]
        stacked = jax.tree.map(lambda *rows: np.stack(rows), *elements)
        return jax.tree.map(lambda a: a.reshape(*places.shape, *a.shape[1:]), stacked)

    @cached_property
    def _form(self) -> Any:
        return _form(self.dataset[0])

    def _element(self, place: int) -> Any:
        element: Any = self.dataset[place]
        if (form := _form(element)) != self._form:
            raise UsageError(
                f"element {place} of the task's data set is {form}, but element 0 "
                f"{self._form}: give all the same entries, shapes and dtypes, and none "
                f"that a filter leaves out"
            )
        return element


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
    _check_one(source)
    return source


def _form(element: Any) -> Any:
    """An element's entries, each as its dtype and shape."""
    return jax.tree.map(lambda a: f"{np.asarray(a).dtype}{[*np.shape(a)]}", element)


def _check_one(source: Examples) -> None:
    """Raise UsageError for examples that cannot be rows of arrays on a device."""
    places = np.zeros((1, 2), int)
    one: Any = source.gather(places)
    if not isinstance(one, Mapping) or not all(isinstance(name, str) for name in one):
        raise UsageError(
            f"an example of the task is {shown(one)}: make it a dictionary of numbers "
            f"and arrays by name"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(one):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        dtype = np.asarray(leaf).dtype
        try:
            jax.eval_shape(lambda a: a, leaf)
        except TypeError:
            raise UsageError(
                f"entry {name!r} of the examples is of {dtype}, which JAX has no "
                f"arrays of: turn it into numbers, by astype, or leave it out"
            ) from None
        if np.shape(leaf)[:2] != places.shape:
            raise UsageError(
                f"the examples at places of shape {places.shape} have {name!r} of "
                f"shape {np.shape(leaf)}: gather must return arrays of shape "
                f"places.shape + (…)"
            )
    if "weights" in one and np.shape(one["weights"]) != places.shape:
        raise UsageError(
            f"an example has weights of shape {np.shape(one['weights'])[2:]}: give it "
            f"one number"
        )
