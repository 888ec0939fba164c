"""λ follows ρ continuously, for whole batches."""

import jax.numpy as jnp
from jax import Array

from hfdist.outcome import Outcome, adapted


def nielsen(damping: Array, outcome: Outcome) -> Array:
    """λ ← λ max(1/3, 1 - (2ρ - 1)³), or 2ᵏ λ after the k-th step refused in a row.

    For deterministic problems, a whole batch every step, where ρ is no noisy guess: a
    good step divides λ by 3 (Nielsen 1999, "Damping parameter in Marquardt's method",
    IMM-REP-1999-05, eq. 2.5, with p = 3, γ = 3 and β = ν = 2). Departures: (2) and (3)
    of `adapted`, and the factor of a step taken is at most 2.
    """
    factor = jnp.clip(1 - (2 * outcome.rho - 1) ** 3, 1 / 3, 2)
    return adapted(damping, outcome, factor, fall=1 / 3, rise=2)
