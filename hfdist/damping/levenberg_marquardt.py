"""λ by thresholds on ρ, for batches."""

import jax.numpy as jnp
from jax import Array

from hfdist.outcome import Outcome, adapted


def levenberg_marquardt(damping: Array, outcome: Outcome) -> Array:
    """λ ← 3/2 λ if ρ < 1/4, 2/3 λ if ρ > 3/4 (Martens 2010, section 4.1), in bounds.

    The departures from Martens are those of `adapted`.
    """
    rho = outcome.rho
    factor = jnp.where(rho > 3 / 4, 2 / 3, jnp.where(rho >= 1 / 4, 1, 3 / 2))
    return adapted(damping, outcome, factor, fall=2 / 3, rise=3 / 2)
