"""What the next batch says of a step: the loss of the batch that made it flatters it.

After a step s to w the next batch's model, g₊ and C₊ there, holds along s as well

    f₊(w + (t - 1) s) ≈ f₊(w) + (t - 1) ⟨g₊, s⟩ + ½ (t - 1)² ⟨s, C₊ s⟩

and is least at t = 1 - ⟨g₊, s⟩ / ⟨s, C₊ s⟩: the rate at which s should have been taken
for examples that did not make it. It costs J s on the next batch, which a two-term step
takes anyway: XLA computes it once, and the operations are those without hindsight.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from hfdist.pytree import PyTree, inner
from hfdist.quadratics import Quadratic

# Of one batch t is mostly noise: both its parts are averaged over about five steps.
KEPT = 0.8


class Hindsight(NamedTuple):
    """Averages over the steps taken so far."""

    slope: Array  # (), of ⟨g₊, s⟩
    curvature: Array  # (), of ⟨s, C₊ s⟩


def no_hindsight(dtype) -> Hindsight:
    """Before there was a step."""
    return Hindsight(jnp.zeros((), dtype), jnp.zeros((), dtype))


def seen_after(
    seen: Hindsight,
    step: PyTree,
    model: Quadratic,
    inner: Callable[[PyTree, PyTree], Array] = inner,
) -> Hindsight:
    """The averages with the step before; model: of this batch, after that step."""
    new = Hindsight(inner(model.gradient, step), model.form([step])[0, 0])
    finite = jnp.isfinite(new.slope) & jnp.isfinite(new.curvature)

    def averaged(old, new):
        mean = KEPT * old + (1 - KEPT) * new
        return jnp.where(finite, mean, old).astype(old.dtype)

    return Hindsight(*map(averaged, seen, new))


def rate(seen: Hindsight | None) -> Array:
    """t, NaN where it is not known."""
    if seen is None:
        return jnp.array(jnp.nan)
    curved = seen.curvature > 0
    ratio = seen.slope / jnp.where(curved, seen.curvature, 1)
    return jnp.where(curved, 1 - ratio, jnp.nan)
