"""Random vectors whose second moment is the Gauss-Newton matrix.

    V = Σᵢ Jᵢᵀ √wᵢ Rᵢ εᵢ / √Σ wᵢ,   Rᵢ Rᵢᵀ = H_z of example i,   ε = ±1 per output,

so that E[vec V vec Vᵀ] = Σ wᵢ Jᵢᵀ H_z Jᵢ / Σ wᵢ = G, without the penalty. A probe is
a forward pass, one Jᵀ product and one all-reduce: it is made at some steps only, behind
a condition, and so cannot share the gradient's forward pass.

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
from optax import tree

from hfdist import losses
from hfdist.errors import UsageError
from hfdist.micro_batches import summed
from hfdist.parallel import Collectives
from hfdist.problem import Batch, Problem
from hfdist.pytree import PyTree, divide, widen, widest, working_dtype
from hfdist.sums import outputs_at

MOST_OUTPUTS = 64  # of an example whose H_z is taken apart


def probe(
    problem: Problem, params: PyTree, batch: Batch, devices: Collectives, step: Array
) -> PyTree:
    """V, a vector like params in their working dtype, with the signs of this step.

    The signs are drawn by the places of examples in the whole batch, so that V depends
    neither on the devices nor on micro-batches.
    Raises UsageError for a loss of which R cannot be had.
    """
    params = devices.own(params)
    outputs = jax.eval_shape(problem.predict, params, batch)
    examples = len(jax.tree.leaves(outputs)[0])
    places_B = devices.share(jnp.arange(devices.size * examples))
    key = jax.random.fold_in(jax.random.key(0), step)
    local = partial(_probe_sums, problem, params, key)
    total, weight = devices.vectors.collect(*summed(local, devices, batch, places_B))
    return divide(total, jnp.sqrt(weight))


def _probe_sums(
    problem: Problem, params: PyTree, key: Array, batch: Batch, places_B: Array
) -> tuple[PyTree, Array]:
    """(Σ Jᵢᵀ √wᵢ Rᵢ εᵢ, Σ wᵢ), the signs ε drawn by the examples' places."""
    at = partial(outputs_at, problem, params, batch)
    outputs, vjp = jax.vjp(at, widen(params))
    z = jax.tree.map(lambda leaf: leaf.astype(widest(leaf.dtype, jnp.float32)), outputs)
    signs = jax.vmap(partial(_signs, key))(places_B, z)
    root = ROOTS.get(inspect.unwrap(problem.loss)) or partial(_dense, problem.loss)
    weights_B = batch.get("weights", jnp.ones(len(places_B)))
    weights_B = weights_B.astype(working_dtype(params))

    def weighted(row, leaf):
        w = weights_B.astype(row.dtype).reshape(-1, *(1,) * (row.ndim - 1))
        # Padding counts for nothing, also where its H_z is not finite.
        return jnp.where(w == 0, 0, jnp.sqrt(w) * row).astype(leaf.dtype)

    (total,) = vjp(jax.tree.map(weighted, root(z, batch, signs), outputs))
    return total, jnp.sum(weights_B)


def _signs(key: Array, place: Array, z: Any) -> Any:
    """±1 for each output of the example at a place."""
    return tree.random_like(jax.random.fold_in(key, place), z, jax.random.rademacher)


def _softmax(z: Array, batch: Batch, signs: Array) -> Array:
    del batch
    p = jax.nn.softmax(z)
    roots = jnp.sqrt(p)
    return roots * signs - p * jnp.sum(roots * signs, -1, keepdims=True)


def _next_token(z_BTV: Array, batch: Batch, signs_BTV: Array) -> Array:
    return _softmax(z_BTV, batch, signs_BTV) / jnp.sqrt(z_BTV.shape[1])


def _sigmoid(z: Array, batch: Batch, signs: Array) -> Array:
    del batch
    return jnp.sqrt(jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)) * signs


def _square(z: Array, batch: Batch, signs: Array) -> Array:
    del z, batch
    return jnp.sqrt(2).astype(signs.dtype) * signs


ROOTS: dict[Callable, Callable[[Array, Batch, Array], Array]] = {
    losses.softmax_cross_entropy: _softmax,
    losses.next_token_cross_entropy: _next_token,
    losses.sigmoid_cross_entropy: _sigmoid,
    losses.squared_error: _square,
}


def _dense(loss: Callable, z: Any, batch: Batch, signs: Any) -> Any:
    """R ε with R = U √Λ of each example's H_z = U Λ Uᵀ, from C derivatives."""
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], z))
    z_BC, signs_BC = (
        jax.vmap(lambda row: ravel_pytree(row)[0])(rows) for rows in (z, signs)
    )
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
    roots_BC = jnp.sqrt(jnp.maximum(values_BC, 0)) * signs_BC
    return jax.vmap(unravel)(jnp.einsum("bij,bj->bi", u_BCC, roots_BC))
