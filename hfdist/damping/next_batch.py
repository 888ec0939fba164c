"""λ by what the next batch says of a step, for batches that are small samples."""

import jax.numpy as jnp
from jax import Array

from hfdist.choices import looking_back
from hfdist.outcome import Outcome, adapted

AIM = 0.6  # the rate t that λ is moved to
GAIN = 0.4
LEAST = 1e-3  # of λ₀


@looking_back
def next_batch(damping: Array, outcome: Outcome) -> Array:
    """λ ← λ exp(-0.4 clip(t - 0.6, -1, 1)), from λ₀/1000 to λ₀; t of hindsight.py.

    A step's own batch says ρ ≈ 1 however far λ has fallen, when each step fits its
    batch and no other. On the next batch a step that goes to the least loss along
    itself has t = 1, and one that no longer lowers it t = 1/2. The aim is in between:
    with t = 1 the steps are best one by one, and too short for all that come after.

    Noise is no reason for λ > λ₀. Where the model itself fails, ρ < 1/4, or the step is
    refused, λ rises by 3/2 and further, as by levenberg_marquardt.
    """
    first = outcome.first
    moved = damping * jnp.exp(-GAIN * jnp.clip(outcome.rate - AIM, -1, 1))
    moved = jnp.clip(moved, LEAST * first, jnp.maximum(damping, first))
    fails = outcome.rho < 1 / 4
    factor = jnp.where(fails, 3 / 2, moved / damping)
    evidence = jnp.where(fails, outcome.rho, outcome.rate)
    return adapted(
        damping, outcome._replace(rho=evidence), factor, fall=2 / 3, rise=3 / 2
    )
