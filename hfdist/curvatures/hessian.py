"""The Hessian H = ∇²f itself (paper, eq. 5)."""

from functools import partial

import jax

from hfdist.problem import Batch, Problem
from hfdist.pytree import PyTree, widen
from hfdist.sums import Sums, loss_at


def hessian(problem: Problem, params: PyTree, batch: Batch) -> Sums:
    """v -> ∂(∇f)(w) v, forward over reverse (Pearlmutter 1994)."""
    loss = partial(loss_at, problem, params, batch)
    gradient = jax.value_and_grad(loss, has_aux=True)
    (sums, gradient_sum), tangent = jax.linearize(gradient, widen(params))
    loss_sum, weight_sum = sums
    return Sums(loss_sum, weight_sum, gradient_sum, lambda v: tangent(v)[1])
