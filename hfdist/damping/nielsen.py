"""λ follows ρ continuously, for whole batches."""

import jax.numpy as jnp
from jax import Array

from hfdist.outcome import Outcome, before_the_step


def nielsen(damping: Array, outcome: Outcome) -> Array:
    """λ ← λ max(1/3, 1 - (2ρ - 1)³), or 2ᵏ λ after the k-th step refused in a row.

    For deterministic problems, a whole batch every step, where ρ is no noisy guess: a
    good step divides λ by 3 (Nielsen 1999, "Damping parameter in Marquardt's method",
    IMM-REP-1999-05, eq. 2.5, with p = 3, γ = 3 and β = ν = 2). Departures: (2) and (3)
    of levenberg_marquardt, and the factor of a step taken is at most 2.
    """
    rho = outcome.rho
    factor = jnp.clip(1 - (2 * rho - 1) ** 3, 1 / 3, 2)
    without_evidence = jnp.clip(outcome.first / damping, 1 / 3, 1)
    factor = jnp.where(jnp.isnan(rho), without_evidence, factor)
    refused = jnp.maximum(outcome.refused, 1).astype(damping.dtype)
    factor = jnp.where(outcome.refusal > 0, jnp.power(2, refused), factor)
    factor = jnp.where(before_the_step(outcome.refusal), 1, factor)
    return jnp.clip(damping * factor, *outcome.bounds)
