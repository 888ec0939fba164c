"""Random vectors whose second moment is the Gauss-Newton matrix.

    V = Σᵢ Jᵢᵀ √wᵢ Rᵢ εᵢ / √Σ wᵢ,   Rᵢ Rᵢᵀ = H_z of example i,   ε = ±1 per output,

so that E[vec V vec Vᵀ] = Σ wᵢ Jᵢᵀ H_z Jᵢ / Σ wᵢ = G, without the penalty; R is that of
roots.py. A probe is a forward pass, one Jᵀ product and one all-reduce: it is made at
some steps only, behind a condition, and so cannot share the gradient's forward pass.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from optax import tree

from hfdist.micro_batches import summed
from hfdist.parallel import Collectives
from hfdist.problem import Batch, Problem
from hfdist.pytree import PyTree, divide, widen, working_dtype
from hfdist.roots import at_least_float32, root
from hfdist.sums import outputs_at


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
    signs = jax.vmap(partial(_signs, key))(places_B, at_least_float32(outputs))
    (total,) = vjp(root(problem, outputs, batch)(signs))
    weights_B = batch.get("weights", jnp.ones(len(places_B)))
    return total, jnp.sum(weights_B.astype(working_dtype(params)))


def _signs(key: Array, place: Array, z: Any) -> Any:
    """±1 for each output of the example at a place."""
    return tree.random_like(jax.random.fold_in(key, place), z, jax.random.rademacher)
