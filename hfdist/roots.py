"""The square root of the loss's Hessian in the outputs, example by example.

    R Rᵀ = H_z of an example

For hfdist's losses R is written down: for softmax, with p the probabilities,

    R = diag(√p) - p √pᵀ,   R Rᵀ = diag(p) - p pᵀ   since √pᵀ √p = 1.

For another loss it comes from the eigenvectors of each example's H_z.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from hfdist import losses
from hfdist.errors import UsageError
from hfdist.problem import Batch, Problem
from hfdist.pytree import parameter_count, widest

MOST_OUTPUTS = 64  # of an example whose H_z is taken apart

Linear = Callable[[Any], Any]


def has_root(loss: Callable, outputs: Any) -> bool:
    """Whether R can be had, of outputs like these."""
    leaves = jax.tree.leaves(outputs)
    return inspect.unwrap(loss) in ROOTS or (
        parameter_count(leaves) <= MOST_OUTPUTS * len(leaves[0])
    )


def root(problem: Problem, outputs: Any, batch: Batch) -> Linear:
    """ε -> √wᵢ Rᵢ εᵢ, like the outputs; ε is like them in float32 at least.

    Raises UsageError for a loss of which R cannot be had.
    """
    z = at_least_float32(outputs)
    of_loss = ROOTS.get(inspect.unwrap(problem.loss)) or partial(_dense, problem.loss)
    apply = of_loss(z, batch)
    weights_B = batch.get("weights", jnp.ones(len(jax.tree.leaves(z)[0])))

    def times_root(w: Array, row: Array) -> Array:
        """√w times a row; nothing of padding, also where its R is not finite."""
        w = w.astype(row.dtype).reshape(-1, *(1,) * (row.ndim - 1))
        return jnp.where(w == 0, 0, jnp.sqrt(w) * row)

    def rooted(signs: Any) -> Any:
        # Before R too, for the sake of its transpose.
        counted = jax.tree.map(partial(times_root, jnp.sign(weights_B)), signs)
        rows = jax.tree.map(partial(times_root, weights_B), apply(counted))
        return jax.tree.map(lambda row, leaf: row.astype(leaf.dtype), rows, outputs)

    return rooted


def at_least_float32(outputs: Any) -> Any:
    """The outputs in float32 at least, leaf by leaf."""
    return jax.tree.map(lambda z: z.astype(widest(z.dtype, jnp.float32)), outputs)


def _softmax(z: Array, batch: Batch) -> Linear:
    del batch
    p = jax.nn.softmax(z)
    roots = jnp.sqrt(p)
    return lambda e: roots * e - p * jnp.sum(roots * e, -1, keepdims=True)


def _next_token(z_BTV: Array, batch: Batch) -> Linear:
    apply = _softmax(z_BTV, batch)
    return lambda e_BTV: apply(e_BTV) / jnp.sqrt(z_BTV.shape[1])


def _sigmoid(z: Array, batch: Batch) -> Linear:
    del batch
    roots = jnp.sqrt(jax.nn.sigmoid(z) * jax.nn.sigmoid(-z))
    return lambda e: roots * e


def _square(z: Array, batch: Batch) -> Linear:
    del z, batch
    return lambda e: jnp.sqrt(2).astype(e.dtype) * e


ROOTS: dict[Callable, Callable[[Array, Batch], Linear]] = {
    losses.softmax_cross_entropy: _softmax,
    losses.next_token_cross_entropy: _next_token,
    losses.sigmoid_cross_entropy: _sigmoid,
    losses.squared_error: _square,
}


def _dense(loss: Callable, z: Any, batch: Batch) -> Linear:
    """R = U √Λ of each example's H_z = U Λ Uᵀ, from C derivatives."""
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], z))
    z_BC = rows_of(z)
    outputs = z_BC.shape[1]
    if outputs > MOST_OUTPUTS:
        raise UsageError(
            f"a preconditioner needs a square root of the loss's Hessian in the "
            f"outputs: of a loss that is not hfdist's it is computed for up to "
            f"{MOST_OUTPUTS} outputs an example, and here are {outputs:,}: use a loss "
            f"of hfdist.losses, or preconditioner='none'"
        )

    def loss_sum(z_BC):
        return jnp.sum(loss(jax.vmap(unravel)(z_BC), batch))

    def column(e_C):
        along_BC = jnp.broadcast_to(e_C, z_BC.shape)
        return jax.jvp(jax.grad(loss_sum), (z_BC,), (along_BC,))[1]

    h_BCC = jax.vmap(column, out_axes=1)(jnp.eye(outputs, dtype=z_BC.dtype))
    values_BC, u_BCC = jnp.linalg.eigh(h_BCC)
    roots_BC = jnp.sqrt(jnp.maximum(values_BC, 0))

    def apply(e: Any) -> Any:
        e_BC = roots_BC * rows_of(e)
        return jax.vmap(unravel)(jnp.einsum("bij,bj->bi", u_BCC, e_BC))

    return apply


def rows_of(outputs: Any) -> Array:
    """Outputs as a matrix (B, C), an example a row."""
    return jax.vmap(lambda row: ravel_pytree(row)[0])(outputs)
