"""λ stays, but for steps that were not finite."""

import jax.numpy as jnp
from jax import Array

from hfdist.outcome import Outcome, Refusal


def constant(damping: Array, outcome: Outcome) -> Array:
    """λ is λ₀; 3/2 λ after a step that was not finite, and then falls back.

    Returns 0 for a λ that is not raised: λ is then what a schedule says.
    """
    failed = outcome.refusal != Refusal.NONE
    raised = jnp.minimum(damping * 3 / 2, jnp.maximum(outcome.bounds[1], damping))
    falling = jnp.where(damping > outcome.first, damping * 2 / 3, 0)
    return jnp.where(failed, raised, falling)
