"""λ by thresholds on ρ, for batches."""

import jax.numpy as jnp
from jax import Array

from hfdist.outcome import Outcome, before_the_step


def levenberg_marquardt(damping: Array, outcome: Outcome) -> Array:
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
    without_evidence = jnp.clip(outcome.first / damping, 2 / 3, 1)
    factor = jnp.where(jnp.isnan(rho), without_evidence, factor)
    refused = jnp.maximum(outcome.refused, 1).astype(damping.dtype)
    factor = jnp.where(outcome.refusal > 0, jnp.power(3 / 2, refused), factor)
    factor = jnp.where(before_the_step(outcome.refusal), 1, factor)
    return jnp.clip(damping * factor, *outcome.bounds)
