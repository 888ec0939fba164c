"""What became of a step: why it was refused, and how far its model can be trusted.

The reduction ratio ρ = actual / predicted decrease of the loss says the latter; it is
no evidence where both decreases are within the rounding of f itself.
"""

from enum import IntEnum
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


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
    NOT_LOWERED = 5
    """A line search found no step that lowers the loss enough."""


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
    """What a damping rule goes by: what a step did, and what λ may be."""

    rho: Array  # (), ρ; -∞ for a step that is not to be trusted, NaN for no evidence
    refusal: Array  # () int32, a Refusal
    refused: Array  # () int32, steps refused in a row, this one included; of those
    # that were finite before the step
    first: Array  # (), λ₀, or what a schedule says of this step's λ
    bounds: tuple[float, float]  # least and greatest λ
    rate: Array | float = jnp.nan  # (), t of hindsight.py, for a rule that looks back


def reduction_ratio(actual: Array, predicted: Array, resolution: Array) -> Array:
    """ρ = actual / predicted decrease; NaN where neither exceeds f's resolution.

    -∞ where the loss rose, or was not predicted to fall, or either is not finite.
    """
    sound = (actual >= 0) & (predicted > 0) & jnp.isfinite(actual / predicted)
    rho = jnp.where(sound, actual / jnp.where(sound, predicted, 1), -jnp.inf)
    size = jnp.maximum(jnp.abs(actual), jnp.abs(predicted))
    return jnp.where(jnp.isfinite(size) & (size <= resolution), jnp.nan, rho)


def adapted(
    damping: Array, outcome: Outcome, factor: Array, fall: float, rise: float
) -> Array:
    """λ times the factor that ρ gives, or what stands in its place, in bounds.

    (1) The k-th step refused in a row raises λ by riseᵏ, so that a λ that has become
        too small by orders of magnitude is back within ten steps.
    (2) Without evidence λ stays, but falls back to λ₀ from above: there its steps may
        be too small to be evidence.
    (3) A loss or gradient that is not finite before the step leaves λ alone.
    """
    without_evidence = jnp.clip(outcome.first / damping, fall, 1)
    factor = jnp.where(jnp.isnan(outcome.rho), without_evidence, factor)
    refused = jnp.maximum(outcome.refused, 1).astype(damping.dtype)
    factor = jnp.where(outcome.refusal > 0, jnp.power(rise, refused), factor)
    factor = jnp.where(before_the_step(outcome.refusal), 1, factor)
    return jnp.clip(damping * factor, *outcome.bounds)
