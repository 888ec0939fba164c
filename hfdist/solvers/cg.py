"""Truncated conjugate gradients: the paper's Algorithm 1 (Hestenes & Stiefel 1952)."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from optax import tree

from hfdist.checks import Count, NonNegative, Settings
from hfdist.pytree import PyTree, inner
from hfdist.solvers.solution import Solution


@dataclass(frozen=True, kw_only=True)
class CG(Settings):
    """Solve A x = b by conjugate gradients, from products with A alone.

    Stops when ‖b - A x‖ ≤ rtol ‖b‖ or after max_steps products. All vectors are
    pytrees like b: raveling them would copy every parameter at every product.

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

    def solve(
        self,
        product: Callable[[PyTree], PyTree],
        b: PyTree,
        x0: PyTree | None = None,
        inner: Callable[[PyTree, PyTree], Array] = inner,
    ) -> Solution:
        """x with A x ≈ b, started from x0 (at the price of one product) or from 0.

        A is self-adjoint in `inner`, in which all lengths are measured.
        """
        if x0 is None:
            x, r = tree.zeros_like(b), b
        else:
            x, r = x0, tree.sub(b, product(x0))
        bb = inner(b, b)
        threshold = max(self.rtol, float(jnp.finfo(bb.dtype).eps)) ** 2 * bb

        def unfinished(carry):
            _, _, _, rr, k, indefinite = carry
            return (k < self.max_steps) & (rr > threshold) & ~indefinite

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
            return x, r, p, rr_next, k + 1, ~positive

        carry = (x, r, r, inner(r, r), jnp.int32(0), jnp.bool(False))
        x, r, _, rr, k, indefinite = jax.lax.while_loop(unfinished, step, carry)
        x = tree.where(indefinite & (k == 1), b, x)
        relative_residual = jnp.sqrt(rr / jnp.maximum(bb, jnp.finfo(bb.dtype).tiny))
        return Solution(x, r, relative_residual, k, indefinite)
