"""λ by what the next batch says of a step, for batches that are small samples."""

import jax.numpy as jnp
from jax import Array

from hfdist.choices import looking_back
from hfdist.outcome import Outcome, adapted

AIM = 0.6  # the rate t that λ is moved to
GAIN = 0.4


@looking_back
def next_batch(damping: Array, outcome: Outcome) -> Array:
    """λ ← λ exp(-0.4 clip(t - 0.6, -1, 1)), up to λ₀; t of hindsight.py.

    A step's own batch says that ρ ≈ 1 however far λ has fallen, when each step fits its
    batch and no other. On the next batch a step at the least loss along itself has
    t = 1, and one that lowers it no more t = 1/2. The aim is in between: at t = 1 the
    steps are best one by one, and too short for all that come after.

    Noise is no reason for λ > λ₀. Where the model itself fails, ρ < 1/4, or the step is
    refused, λ rises by 3/2 and further, as by levenberg_marquardt.
    """
    factor = jnp.exp(-GAIN * jnp.clip(outcome.rate - AIM, -1, 1))
    room = jnp.maximum(outcome.first / damping, 1)
    factor = jnp.where(outcome.rho < 1 / 4, 3 / 2, jnp.minimum(factor, room))
    known = outcome._replace(rho=jnp.where(outcome.rho < 1 / 4, 0, outcome.rate))
    return adapted(damping, known, factor, fall=2 / 3, rise=3 / 2)
