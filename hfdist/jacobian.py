"""A predict whose Jacobian is written down, for networks of few params.

A product with J or Jᵀ through a linearised network is a walk through all that it
computes, however few the params. Where J (B, N) is no larger than what such a walk
reads, it is cheaper to form J once a step and to multiply by it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from hfdist.problem import Batch
from hfdist.pytree import PyTree

Predict = Callable[[PyTree, Batch], Array]


def with_jacobian(predict: Predict) -> Predict:
    """The same predict, with the derivative J v of a J that is written down.

        J = ∂z/∂w  (B, …, N),   z = predict(w, batch)  (B, …)

    The values, and every method's steps, are the same but for rounding; the memory is
    that of J. Example by example in reverse mode: each output must depend on its own
    row of the batch alone, and every entry of the batch must have such rows.
    """

    def of_one(params: PyTree, row: Batch) -> Array:
        return predict(params, jax.tree.map(lambda a: a[None], row))[0]

    @jax.custom_jvp
    def whole(params: PyTree, batch: Batch) -> Array:
        return predict(params, batch)

    @whole.defjvp
    def derivative(primals: tuple[Any, Any], tangents: tuple[Any, Any]):
        params, batch = primals
        rows = jax.vmap(jax.jacrev(of_one), (None, 0))(params, batch)
        z = predict(params, batch)
        parts = [j.reshape(*z.shape, -1) for j in jax.tree.leaves(rows)]
        v_N, _ = ravel_pytree(tangents[0])
        highest = jax.lax.Precision.HIGHEST
        product = jnp.matmul(jnp.concatenate(parts, -1), v_N, precision=highest)
        return z, product.astype(z.dtype)

    return whole
