"""What is being minimised: a model's outputs and a convex loss of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from hfdist.pytree import PyTree

Batch = dict[str, Array]


class Problem(NamedTuple):
    """The mean loss f(w) = Σ wᵢ loss(predict(w, xᵢ), yᵢ) / Σ wᵢ over a batch.

    The two halves are kept apart because the Gauss-Newton matrix JᵀH_zJ needs the
    Jacobian J of one and the Hessian H_z of the other.
    """

    predict: Callable[[PyTree, Batch], Any]  # (params, batch) -> outputs, leaves (B, …)
    loss: Callable[[Any, Batch], Array]  # (outputs, batch) -> (B,), convex in outputs


def weighted_sums(problem: Problem, outputs: Any, batch: Batch) -> tuple[Array, Array]:
    """(Σ wᵢ lᵢ, Σ wᵢ) over the examples at hand; without weights every wᵢ is 1."""
    losses_B = problem.loss(outputs, batch)
    if losses_B.ndim != 1:
        raise ValueError(
            f"the loss must return one number per example, shape (B,), but returned "
            f"shape {losses_B.shape}: sum over the outputs, not over the examples"
        )
    weights_B = batch.get("weights")
    if weights_B is None:
        weights_B = jnp.ones_like(losses_B)
    weights_B = weights_B.astype(losses_B.dtype)
    return jnp.sum(weights_B * losses_B), jnp.sum(weights_B)
