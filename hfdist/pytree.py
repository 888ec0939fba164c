"""What optax.tree lacks for vectors that are pytrees of arrays."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from optax import tree

PyTree = Any


def inner(a: PyTree, b: PyTree) -> Array:
    """⟨a, b⟩ over all leaves, multiplied at full precision."""
    return jnp.asarray(tree.vdot(a, b))


def divide(a: PyTree, scalar: Array) -> PyTree:
    """a / scalar, leaf by leaf, each in its own dtype."""
    return jax.tree.map(lambda leaf: leaf / scalar.astype(leaf.dtype), a)


def parameter_count(params: PyTree) -> int:
    """N, the number of scalars in params."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
