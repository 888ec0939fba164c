"""What a batch is: entries by name, in which an example is a row.

Each leaf of an entry has one row per example and is split over the devices, but for the
entries that are named as replicated (class weights, a random key), whole on each.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from hfdist.errors import UsageError


def check_batch(batch: Any, replicated: Collection[str]) -> None:
    """Raise UsageError for what is no mapping, or lacks an entry that is replicated."""
    if not isinstance(batch, Mapping):
        raise UsageError(
            f"the batch is a {type(batch).__name__}: pass a dict with entries by name "
            f"(inputs, labels or targets, weights, and any of your own)"
        )
    missing = [name for name in replicated if name not in batch]
    if missing:
        raise UsageError(
            f"replicated names {missing}, which the batch lacks: it has {list(batch)}"
        )


def entry_name(path: tuple[Any, ...]) -> str:
    """The name of the entry that a leaf of a batch, by its path, is in."""
    return jax.tree_util.keystr(path[:1], simple=True)


def is_replicated(path: tuple[Any, ...], replicated: Collection[str]) -> bool:
    """Whether that entry is named as replicated."""
    return entry_name(path) in replicated


def examples_in(batch: Any, replicated: Collection[str]) -> int:
    """The number of rows that the entries of a batch have.

    Raises UsageError, naming it, for an entry that has none or another number.
    """
    shapes = {
        path: jnp.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
        if not is_replicated(path, replicated)
    }
    counts = Counter(shape[0] for shape in shapes.values() if shape)
    if not counts:
        raise UsageError("the batch has no entry with a row for each example")
    examples = counts.most_common(1)[0][0]
    for path, shape in shapes.items():
        if entry_name(path) == "inputs" and shape:
            examples = shape[0]
    for path, shape in shapes.items():
        if shape[:1] != (examples,):
            raise UsageError(
                f"batch{jax.tree_util.keystr(path)} has shape {shape}, which is not a "
                f"row for each of the {examples} examples that the devices share: give "
                f"it such rows, or, if every device needs all of it, "
                f"build(problem, mesh=mesh, replicated=({entry_name(path)!r},))"
            )
    return examples


def check_shares(batch: Any, devices: int, replicated: Collection[str]) -> None:
    """Raise UsageError for a batch that the devices cannot share evenly."""
    examples = examples_in(batch, replicated)
    if examples % devices:
        raise UsageError(
            f"the batch has {examples} examples, which {devices} devices cannot share "
            f"evenly: pad it with examples of weight 0"
        )


def spread(batch: Any, share: Fraction) -> Any:
    """The rows of a share p/q of a batch: the first p of every q.

    On each device they are rows that it has, where q divides its number of them. Then
    they are the same examples on any number of devices.
    """
    p, q = share.as_integer_ratio()

    def rows(leaf):
        groups, *shape = len(leaf) // q, *leaf.shape[1:]
        return leaf.reshape(groups, q, *shape)[:, :p].reshape(groups * p, *shape)

    return jax.tree.map(rows, batch)
