"""Iterates of a solve that are kept, to go back to (Martens 2010, section 4.6)."""

from math import ceil
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from hfdist.pytree import PyTree

# As in the code that Martens (2010) published: after ⌈5 · 1.3ʲ⌉ steps.
FIRST, GROWTH = 5, 1.3


class Iterates(NamedTuple):
    """The newest m of those that were to be kept, before the last of all."""

    x: PyTree  # leaves (m, …), like x
    steps: Array  # (m,) int32, after how many steps; 0: none is kept there


def marks(max_steps: int) -> tuple[int, ...]:
    """⌈5 · 1.3ʲ⌉ = 5, 7, 9, 11, 15, 19, 25, … as long as it is less than max_steps."""
    found, mark = [], float(FIRST)
    while ceil(mark) < max_steps:
        found.append(ceil(mark))
        mark *= GROWTH
    return tuple(found)


def none_yet(like: PyTree, max_steps: int, most: int) -> Iterates:
    """Room for as many as a solve of max_steps can have, `most` at the most."""
    m = min(most, len(marks(max_steps)))
    x = jax.tree.map(lambda leaf: jnp.zeros((m, *leaf.shape), leaf.dtype), like)
    return Iterates(x, jnp.zeros(m, jnp.int32))


def with_iterate(
    iterates: Iterates, x: PyTree, k: Array, max_steps: int, went_on: Array
) -> Iterates:
    """With x after k steps, if it is to be kept and the solve went on from it.

    It takes the place of the earliest.
    """
    marks_J = jnp.array(marks(max_steps), k.dtype)
    place = jnp.sum(marks_J < k) % len(iterates.steps)
    due = went_on & jnp.any(marks_J == k)

    def put(rows, row):
        return rows.at[place].set(jnp.where(due, row, rows[place]))

    return Iterates(jax.tree.map(put, iterates.x, x), put(iterates.steps, k))
