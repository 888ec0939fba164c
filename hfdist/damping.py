"""How the damping λ in (C + λI) d = -g moves from step to step.

A rule is a function (λ, ρ) -> λ of the reduction ratio ρ = actual / predicted decrease
of the loss. ρ is -∞ for a step that raised the loss or was not finite, or whose solver
met negative curvature: then λ is raised.
"""

from typing import Literal

import jax.numpy as jnp
from jax import Array

DampingRule = Literal["constant", "levenberg_marquardt"]


def constant(damping: Array, least: float, sound: Array) -> Array:
    """λ stays, but is 3/2 λ after a step that was not finite, and then falls back."""
    return jnp.where(sound, jnp.maximum(damping * 2 / 3, least), damping * 3 / 2)


def levenberg_marquardt(damping: Array, rho: Array) -> Array:
    """λ ← 3/2 λ if ρ < 1/4, 2/3 λ if ρ > 3/4 (Martens 2010, section 4.1)."""
    return damping * jnp.where(rho > 3 / 4, 2 / 3, jnp.where(rho >= 1 / 4, 1, 3 / 2))


def reduction_ratio(actual: Array, predicted: Array) -> Array:
    """ρ = actual / predicted, or -∞ where the loss rose or either is not finite."""
    sound = (actual >= 0) & (predicted > 0) & jnp.isfinite(actual / predicted)
    return jnp.where(sound, actual / jnp.where(sound, predicted, 1), -jnp.inf)
