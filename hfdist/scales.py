"""A damping λD that weighs each param by what has hung on it so far.

    D ← max(D, diag C)    entry by entry, step after step (Moré 1978, section 4)

With D = diag C of now (Marquardt 1963) nothing holds a param back that the outputs have
forgotten: it runs off, where a step too long has once led (to exp(-b x) = 0, say).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from optax import tree

from hfdist.pytree import PyTree, same


def grown(scales: PyTree, matrix_NN: Array) -> PyTree:
    """The greater of D and diag C; D where C is not finite."""
    scales_N, unravel = ravel_pytree(scales)
    diagonal_N = jnp.diagonal(matrix_NN)
    larger_N = jnp.isfinite(diagonal_N) & (diagonal_N > scales_N)
    return unravel(jnp.where(larger_N, diagonal_N, scales_N))


def metric(scales: PyTree) -> Callable[[PyTree], PyTree]:
    """v -> D v, both like the params; v itself where there are no scales.

    A param on which nothing has hung has the slope 0, and counts as any other.
    """
    if scales is None:
        return same
    return partial(tree.mul, jax.tree.map(lambda d: jnp.where(d > 0, d, 1), scales))
