"""How the damping λ in (C + λI) d = -g moves from step to step.

A rule is a function (λ, outcome) -> λ of what the step made with λ did. The reduction
ratio ρ = actual / predicted decrease of the loss says how far the quadratic model can
be trusted; it is no evidence where both decreases are within the rounding of f itself.
"""

from enum import IntEnum
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

DampingRule = Literal["constant", "levenberg_marquardt", "nielsen"]


class Refusal(IntEnum):
    """Why an update is zero."""

    NONE = 0
    """It is not: the step was taken."""
    LOSS_NOT_FINITE = 1
    """The loss at the params, before the step."""
    GRADIENT_NOT_FINITE = 2
    """The gradient there."""
    STEP_NOT_FINITE = 3
    """The solver's result: the matrix is singular, or overflowed."""
    LOSS_ROSE = 4
    """The loss after the step is higher, or not finite (where λ follows ρ)."""


def not_finite(loss: Array, gradient: Array, step: Array) -> Array:
    """The Refusal for the first of these norms that is not finite, () int32."""
    refusal = jnp.where(jnp.isfinite(step), Refusal.NONE, Refusal.STEP_NOT_FINITE)
    finite = jnp.isfinite(gradient)
    refusal = jnp.where(finite, refusal, Refusal.GRADIENT_NOT_FINITE)
    refusal = jnp.where(jnp.isfinite(loss), refusal, Refusal.LOSS_NOT_FINITE)
    return refusal.astype(jnp.int32)


def before_the_step(refusal: Array) -> Array:
    """Whether what was not finite was so before the step: no damping would mend it."""
    loss = refusal == Refusal.LOSS_NOT_FINITE
    return loss | (refusal == Refusal.GRADIENT_NOT_FINITE)


class Outcome(NamedTuple):
    """What a step did, for the next λ."""

    rho: Array  # (), ρ; -∞ for a step that is not to be trusted, NaN for no evidence
    refusal: Array  # () int32, a Refusal
    refused: Array  # () int32, steps refused in a row, this one included; of those
    # that were finite before the step


def constant(
    damping: Array, outcome: Outcome, first: Array, bounds: tuple[float, float]
) -> Array:
    """λ is `first`; 3/2 λ after a step that was not finite, and then falls back.

    Returns 0 for a λ that is not raised: λ is then what a schedule says.
    """
    failed = outcome.refusal != Refusal.NONE
    raised = jnp.minimum(damping * 3 / 2, jnp.maximum(bounds[1], damping))
    falling = jnp.where(damping > first, damping * 2 / 3, 0)
    return jnp.where(failed, raised, falling)


def levenberg_marquardt(
    damping: Array, outcome: Outcome, first: Array, bounds: tuple[float, float]
) -> Array:
    """λ ← 3/2 λ if ρ < 1/4, 2/3 λ if ρ > 3/4 (Martens 2010, section 4.1), in bounds.

    Departures from Martens:
    (1) The k-th step refused in a row raises λ by (3/2)ᵏ, so that a λ that has become
        too small by orders of magnitude is back within ten steps.
    (2) Without evidence λ stays, but falls back to λ₀ from above: there its steps may
        be too small to be evidence.
    (3) A loss or gradient that is not finite before the step leaves λ alone.
    """
    rho = outcome.rho
    factor = jnp.where(rho > 3 / 4, 2 / 3, jnp.where(rho >= 1 / 4, 1, 3 / 2))
    without_evidence = jnp.clip(first / damping, 2 / 3, 1)
    factor = jnp.where(jnp.isnan(rho), without_evidence, factor)
    refused = jnp.maximum(outcome.refused, 1).astype(damping.dtype)
    factor = jnp.where(outcome.refusal > 0, jnp.power(3 / 2, refused), factor)
    factor = jnp.where(before_the_step(outcome.refusal), 1, factor)
    return jnp.clip(damping * factor, *bounds)


def nielsen(
    damping: Array, outcome: Outcome, first: Array, bounds: tuple[float, float]
) -> Array:
    """λ ← λ max(1/3, 1 - (2ρ - 1)³), or 2ᵏ λ after the k-th step refused in a row.

    For deterministic problems, a whole batch every step, where ρ is no noisy guess: a
    good step divides λ by 3 (Nielsen 1999, "Damping parameter in Marquardt's method",
    IMM-REP-1999-05, eq. 2.5, with p = 3, γ = 3 and β = ν = 2). Departures: (2) and (3)
    of levenberg_marquardt, and the factor of a step taken is at most 2.
    """
    rho = outcome.rho
    factor = jnp.clip(1 - (2 * rho - 1) ** 3, 1 / 3, 2)
    without_evidence = jnp.clip(first / damping, 1 / 3, 1)
    factor = jnp.where(jnp.isnan(rho), without_evidence, factor)
    refused = jnp.maximum(outcome.refused, 1).astype(damping.dtype)
    factor = jnp.where(outcome.refusal > 0, jnp.power(2, refused), factor)
    factor = jnp.where(before_the_step(outcome.refusal), 1, factor)
    return jnp.clip(damping * factor, *bounds)


RULES = {
    "constant": constant,
    "levenberg_marquardt": levenberg_marquardt,
    "nielsen": nielsen,
}


def reduction_ratio(actual: Array, predicted: Array, resolution: Array) -> Array:
    """ρ = actual / predicted decrease; NaN where neither exceeds f's resolution.

    -∞ where the loss rose, or was not predicted to fall, or either is not finite.
    """
    sound = (actual >= 0) & (predicted > 0) & jnp.isfinite(actual / predicted)
    rho = jnp.where(sound, actual / jnp.where(sound, predicted, 1), -jnp.inf)
    size = jnp.maximum(jnp.abs(actual), jnp.abs(predicted))
    return jnp.where(jnp.isfinite(size) & (size <= resolution), jnp.nan, rho)
