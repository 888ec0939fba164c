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
from jax.custom_derivatives import SymbolicZero
from jax.flatten_util import ravel_pytree

from hfdist.errors import UsageError
from hfdist.problem import Batch
from hfdist.pytree import PyTree

Predict = Callable[[PyTree, Batch], Array]
# Of the largest output; much more than rounding, that of TF32 and bfloat16 included.
UNLIKE = 0.1


def with_jacobian(predict: Predict) -> Predict:
    """The same predict, with the derivative J v of a J that is written down.

        J = ∂z/∂w,   z = predict(w, batch)  (B, …)

    The values, and every method's steps, are the same but for rounding; the memory is
    that of J, and params that devices share out do without it. Example by example in
    reverse mode: each output must depend on its own row of the batch alone, and every
    entry of the batch must have such rows. Where the outputs show that they do not, as
    those of BatchNorm in training, J is NaN, so that no step is taken. Raises
    UsageError for outputs that are not one array, entries without rows, and derivatives
    in the batch.
    """

    def of_one(params: PyTree, row: Batch) -> tuple[Array, Array]:
        z = predict(params, jax.tree.map(lambda a: a[None], row))[0]
        return z, z

    def columns_of_one(params: PyTree, row: Batch) -> tuple[list[Array], Array]:
        """J of an example as parts (n, C), and its outputs."""
        j, z = jax.jacrev(of_one, has_aux=True)(params, row)
        return [leaf.reshape(z.size, -1).T for leaf in jax.tree.leaves(j)], z

    @jax.custom_jvp
    def whole(params: PyTree, batch: Batch) -> Array:
        return predict(params, batch)

    def values_and_jacobian(params: PyTree, batch: Batch) -> tuple[Array, Array]:
        z = predict(params, batch)
        _check(z, batch)
        parts, z_alone = jax.vmap(columns_of_one, (None, 0), (1, 0))(params, batch)
        j = jnp.concatenate(parts).reshape(-1, *z.shape)
        unlike = jnp.max(jnp.abs(z_alone - z)) > UNLIKE * jnp.max(jnp.abs(z))
        # A factor, and not a choice: of that the transpose is 0, not NaN.
        return z, j * jnp.where(unlike, jnp.nan, 1)

    def derivative(primals: tuple[Any, Any], tangents: tuple[Any, Any]):
        params, batch = primals
        _check_constant(tangents[1])
        z, j = values_and_jacobian(params, batch)
        v_N, _ = ravel_pytree(jax.tree.map(_written, tangents[0], params))
        product = jnp.tensordot(v_N, j, 1, precision=jax.lax.Precision.HIGHEST)
        return z, product.astype(z.dtype)

    whole.defjvp(derivative, symbolic_zeros=True)
    whole.jacobian = lambda *at: values_and_jacobian(*at)[1]  # pyright: ignore[reportAttributeAccessIssue]
    return whole


def written_jacobian(predict: Predict) -> Callable[[PyTree, Batch], Array] | None:
    """(params, batch) -> Jᵀ (N, B, …) of a predict that writes it down, or None."""
    return getattr(predict, "jacobian", None)


def without_jacobian(predict: Predict) -> Predict:
    """The predict that `with_jacobian` was given; any other is itself."""
    return predict.__wrapped__ if written_jacobian(predict) else predict  # pyright: ignore[reportFunctionMemberAccess]


def _written(tangent: Any, primal: Any) -> Any:
    return jnp.zeros_like(primal) if isinstance(tangent, SymbolicZero) else tangent


def _check(z: Any, batch: Batch) -> None:
    if not isinstance(z, Array):
        raise UsageError(
            f"with_jacobian is for a predict with one array of outputs (B, …), and "
            f"this one returned a {type(z).__name__}: concatenate them"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if jnp.shape(leaf)[:1] != z.shape[:1]:
            raise UsageError(
                f"with_jacobian goes from row to row of the batch, and "
                f"batch{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}, not "
                f"one of {z.shape[0]} rows: close over it in predict"
            )


def _check_constant(tangents: Any) -> None:
    if not all(isinstance(t, SymbolicZero) for t in jax.tree.leaves(tangents)):
        raise UsageError(
            "with_jacobian has the derivative in the params alone: for one in the "
            "batch, such as a differential equation's, wrap what is differentiated"
        )
