"""Truncated conjugate gradients: the paper's Algorithm 1 (Hestenes & Stiefel 1952)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from optax import tree

from hfdist.checks import Count, NonNegative
from hfdist.solvers.solution import Reason, Solution, not_positive
from hfdist.solvers.solver import Solver


@dataclass(frozen=True, kw_only=True)
class CG(Solver):
    """Solve A x = b by conjugate gradients, from products with A alone.

    Stops when ‖b - A x‖ ≤ rtol ‖b‖ or after max_steps products; a start costs one
    product more. All vectors are pytrees like b: raveling them would copy every
    parameter at every product.

    Departures from the textbook:
    (1) A direction with pᵀAp ≤ 0 ends the solve with the iterate so far; at the very
        first direction, with b itself, the steepest descent (Dembo & Steihaug 1983).
    (2) rtol is never less than the unit roundoff: past it the recurrence divides
        0 by 0.
    """

    max_steps: Count = 10
    """Most products with A in one solve; each costs about one gradient."""
    rtol: NonNegative = 1e-3
    """Residual to stop at, relative to the right-hand side's norm."""

    by_inner_products = True

    def solve(self, system):
        product, b, start, inner = system
        if start is None:
            x, r = tree.zeros_like(b), b
        else:
            x, r = start, tree.sub(b, product(start))
        bb = inner(b, b)
        threshold = max(self.rtol, float(jnp.finfo(bb.dtype).eps)) ** 2 * bb

        def unfinished(carry):
            _, _, _, rr, k, reason = carry
            going = reason == Reason.STEPS_USED_UP  # so far
            return (k < self.max_steps) & (rr > threshold) & going

        def step(carry):
            x, r, p, rr, k, _ = carry
            a_p = product(p)
            p_a_p = inner(p, a_p)
            positive = p_a_p > 0  # False for NaN too
            alpha = jnp.where(positive, rr / jnp.where(positive, p_a_p, 1), 0)
            x = tree.add_scale(x, alpha, p)
            r = tree.where(positive, tree.add_scale(r, -alpha, a_p), r)
            rr_next = inner(r, r)
            p = tree.add_scale(r, rr_next / rr, p)
            return x, r, p, rr_next, k + 1, _reason(p_a_p)

        used_up = jnp.int32(Reason.STEPS_USED_UP)
        carry = (x, r, r, inner(r, r), jnp.int32(0), used_up)
        x, r, _, rr, k, reason = jax.lax.while_loop(unfinished, step, carry)
        x = tree.where(not_positive(reason) & (k == 1), b, x)
        relative_residual = jnp.sqrt(rr / jnp.maximum(bb, jnp.finfo(bb.dtype).tiny))
        at_end = jnp.where(rr > threshold, reason, Reason.CONVERGED)
        at_end = jnp.where(jnp.isfinite(rr), at_end, Reason.NOT_FINITE)
        reason = jnp.where(reason == Reason.STEPS_USED_UP, at_end, reason)
        return Solution(x, r, relative_residual, k, reason)

    def held(self, unknowns, examples):
        # x, r, p, A p and b; each twice, and XXᵀ, in gram coordinates.
        return 5 * unknowns * (2 if examples else 1) + examples**2


def _reason(p_a_p: Array) -> Array:
    """Why to end after a direction of this curvature; STEPS_USED_UP: go on."""
    reason = jnp.where(p_a_p <= 0, Reason.NEGATIVE_CURVATURE, Reason.SINGULAR)
    return jnp.where(p_a_p > 0, Reason.STEPS_USED_UP, reason).astype(jnp.int32)
