"""Truncated conjugate gradients: the paper's Algorithm 1 (Hestenes & Stiefel 1952)."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from optax import tree

from hfdist.checks import NonNegative, Whole
from hfdist.errors import UsageError
from hfdist.pytree import PyTree
from hfdist.solvers.iterates import FIRST, Iterates, none_yet, with_iterate
from hfdist.solvers.solution import Reason, Solution, not_positive, relative
from hfdist.solvers.solver import Solver
from hfdist.solvers.system import System


class _At(NamedTuple):
    """After k steps."""

    x: PyTree
    r: PyTree  # b - A x
    p: PyTree  # the next direction
    rz: Array  # (), ⟨r, M⁻¹ r⟩
    rr: Array  # (), ⟨r, r⟩
    values: Array | None  # (max_steps + 1,), φ after each step so far; None: unused
    iterates: Iterates | None  # kept so far; None: none are
    k: Array  # () int32
    reason: Array  # () int32, a Reason; STEPS_USED_UP: none to end


@dataclass(frozen=True, kw_only=True)
class CG(Solver):
    """Solve A x = b by conjugate gradients, from products with A alone.

    Stops when ‖b - A x‖ ≤ rtol ‖b‖ or after max_steps products; a start costs one
    product more. Preconditioned where the system says so (Nocedal & Wright 2006,
    algorithm 5.3), for one application a step. All vectors are pytrees like b:
    raveling them would copy every parameter at every product.

    Departures from the textbook:
    (1) A direction with pᵀAp ≤ 0 ends the solve with the iterate so far; at the very
        first direction, with b itself, the steepest descent, preconditioned where the
        rest is (Dembo & Steihaug 1983).
    (2) rtol is never less than the unit roundoff: past it the recurrence divides
        0 by 0.
    (3) With progress ε > 0 it also stops after i steps (Martens 2010, section 4.4) when

            i > k,   φᵢ < 0,   (φᵢ - φᵢ₋ₖ) / φᵢ < k ε,   k = max(10, ⌈i / 10⌉),

        φ(x) = ½ ⟨x, A x⟩ - ⟨b, x⟩, which a step lowers by ½ ⟨r, M⁻¹ r⟩² / pᵀAp.
    """

    max_steps: Annotated[int, Whole(0)] = 10
    """Most products with A in one solve; each costs about one gradient. 0: M⁻¹ b, the
    direction of the first step, of which a two-term step finds the length."""
    rtol: NonNegative = 1e-3
    """Residual to stop at, relative to the right-hand side's norm."""
    progress: NonNegative = 0.0
    """ε, the progress a step to stop at, relative to all progress so far (Martens:
    5e-4); 0: never for that."""
    stored: Annotated[int, Whole(0)] = 0
    """Most iterates to keep, the newest of those after 5, 7, 9, 11, 15, … steps; from
    the last the step goes back over them while f falls (Martens 2010: CG backtracking).
    Each takes N numbers; 0: no going back."""

    by_inner_products = True

    def __post_init__(self):
        super().__post_init__()
        if self.stored and self.max_steps <= FIRST:
            raise UsageError(
                f"CG.stored is {self.stored}, but the first iterate is kept after "
                f"{FIRST} steps, and max_steps is {self.max_steps}: use stored=0, or "
                f"more steps"
            )

    def solve(self, system):
        if not self.max_steps:
            return _first_direction(system)
        b, inner = system.b, system.inner
        bb = inner(b, b)
        threshold = max(self.rtol, float(jnp.finfo(bb.dtype).eps)) ** 2 * bb
        precondition = system.precondition

        def unfinished(at):
            going = at.reason == Reason.STEPS_USED_UP  # so far
            return (at.k < self.max_steps) & (at.rr > threshold) & going

        def preconditioned(at):
            """M⁻¹ r; at the end, where it would not be used, r itself."""
            if precondition is None:
                return at.r, at.rr
            z = jax.lax.cond(unfinished(at), precondition, lambda r: r, at.r)
            return z, inner(at.r, z)

        def step(at):
            x, r, p, rz, _, values, iterates, k, _ = at
            a_p = system.product(p)
            p_a_p = inner(p, a_p)
            positive = p_a_p > 0  # False for NaN too
            alpha = jnp.where(positive, rz / jnp.where(positive, p_a_p, 1), 0)
            if iterates is not None:
                iterates = with_iterate(iterates, x, k, self.max_steps, positive)
            x = tree.add_scale(x, alpha, p)
            r = tree.where(positive, tree.add_scale(r, -alpha, a_p), r)
            rr, reason = inner(r, r), _reason(p_a_p)
            if values is not None:
                values = values.at[k + 1].set(values[k] - alpha * rz / 2)
                slow = _slowed(values, k + 1, self.progress) & (rr > threshold)
                reason = jnp.where(slow & positive, Reason.PROGRESS_SLOWED, reason)
            at = _At(x, r, p, rz, rr, values, iterates, k + 1, reason)
            z, rz_next = preconditioned(at)
            return at._replace(p=tree.add_scale(z, rz_next / rz, p), rz=rz_next)

        at = _started(system, self.max_steps if self.progress else None)
        if self.stored:
            at = at._replace(iterates=none_yet(b, self.max_steps, self.stored))
        z, rz = preconditioned(at)
        at = jax.lax.while_loop(unfinished, step, at._replace(p=z, rz=rz))
        x = _or_steepest(system, not_positive(at.reason) & (at.k == 1), at.x)
        at_end = jnp.where(at.rr > threshold, at.reason, Reason.CONVERGED)
        at_end = jnp.where(jnp.isfinite(at.rr), at_end, Reason.NOT_FINITE)
        reason = jnp.where(at.reason == Reason.STEPS_USED_UP, at_end, at.reason)
        return Solution(x, at.r, relative(at.rr, bb), at.k, reason, at.iterates)

    def held(self, unknowns, examples):
        # x, r, p, A p, b and what is stored; twice, and XXᵀ, in gram coordinates.
        vectors = (5 + self.stored) * (2 if examples else 1)
        return vectors * unknowns + examples**2


def _first_direction(system: System) -> Solution:
    """x = M⁻¹ b, without a product."""
    b, precondition = system.b, system.precondition
    x = b if precondition is None else precondition(b)
    unknown = jnp.full_like(system.inner(b, b), jnp.nan)
    return Solution(x, None, unknown, jnp.int32(0), jnp.int32(Reason.STEPS_USED_UP))


def _started(system: System, most: int | None) -> _At:
    """At the start, before there is a direction; room for `most` values of φ."""
    b, start, inner = system.b, system.start, system.inner
    if start is None:
        x, r = tree.zeros_like(b), b
    else:
        x, r = start, tree.sub(b, system.product(start))
    rr = inner(r, r)
    values = None
    if most is not None:
        values = jnp.zeros(most + 1, rr.dtype).at[0].set(-inner(x, tree.add(b, r)) / 2)
    zero, going = jnp.int32(0), jnp.int32(Reason.STEPS_USED_UP)
    return _At(x, r, r, rr, rr, values, None, zero, going)


def _slowed(values: Array, i: Array, progress: float) -> Array:
    """Whether φ, known after steps 0 … i, fell by less than k ε of itself in k."""
    k = jnp.maximum(10, (i + 9) // 10)
    phi, before = values[i], values[jnp.maximum(i - k, 0)]
    # Multiplied by φ < 0.
    return (i > k) & (phi < 0) & (phi - before > k * progress * phi)


def _or_steepest(system: System, steepest: Array, x: PyTree) -> PyTree:
    """x, or M⁻¹ b where that is the best that is known."""
    b, precondition = system.b, system.precondition
    if precondition is None:
        return tree.where(steepest, b, x)
    return jax.lax.cond(steepest, lambda: precondition(b), lambda: x)


def _reason(p_a_p: Array) -> Array:
    """Why to end after a direction of this curvature; STEPS_USED_UP: go on."""
    reason = jnp.where(p_a_p <= 0, Reason.NEGATIVE_CURVATURE, Reason.SINGULAR)
    return jnp.where(p_a_p > 0, Reason.STEPS_USED_UP, reason).astype(jnp.int32)
