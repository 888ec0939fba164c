"""What makes CG's steps fewer: M⁻¹ ≈ (C + λI)⁻¹, learnt from probes.

The solution of (C + λI) d = -g is the same with M as without, only sooner. M needs no
names of layers: it learns from the probes V of probes.py, trees like the params with
E[vec V vec Vᵀ] = G, by averages over steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from optax import tree

from hfdist.checks import Count, Fraction, Positive, Settings
from hfdist.pytree import PyTree

EARLY = (1, 2, 5, 10)  # steps at which all is due: the first probes teach the most


@dataclass(frozen=True, kw_only=True)
class Probes(Settings):
    """How a preconditioner learns."""

    every: Count = 1
    """Steps from one probe to the next; each costs about 2/3 of a gradient."""
    decay: Fraction = 0.95
    """What an average keeps of itself at a new probe; the first probes count alike."""
    refresh: Count = 20
    """Steps from one inversion of the averages to the next (kronecker)."""
    largest_side: Count = 4096
    """Side of a kernel up to which a matrix, not a diagonal, is kept (kronecker)."""
    exponent: Positive = 0.75
    """Power of E[V²] + λ to divide by (diagonal; Martens 2010: 0.75)."""


class Preconditioner(NamedTuple):
    """Pure functions of a state, a pytree of arrays that is part of the method's."""

    init: Callable[[PyTree], Any]  # params -> state, of no probe yet
    update: Callable[[Any, PyTree, Array], Any]  # state, V, what is kept -> state
    refresh: Callable[[Any, Array], Any]  # state, λ -> state: inverses of the averages
    apply: Callable[[Any, Array, PyTree], PyTree]  # state, λ, v -> M⁻¹ v, M definite


class Preconditioning(NamedTuple):
    """A preconditioner, and how it learns."""

    rule: Preconditioner
    settings: Probes


class Learnt(NamedTuple):
    """A preconditioner's state after so many probes."""

    probes: Array  # () int32
    state: Any


def learn(
    preconditioner: Preconditioner,
    settings: Probes,
    learnt: Learnt,
    step: Array,
    damping: Array,
    draw: Callable[[Array], PyTree],
) -> Learnt:
    """The state at a step, counted from 1, after a probe and a refresh where due.

    The k-th probe weighs max(1 - decay, 1/k). One that is not finite counts for none.
    """

    def probed(learnt):
        probe, count = draw(step), learnt.probes + 1
        kept = jnp.minimum(settings.decay, 1 - 1 / count.astype(damping.dtype))
        state = preconditioner.update(learnt.state, probe, kept)
        finite = jnp.isfinite(tree.norm(probe, squared=True))
        return tree.where(finite, Learnt(count, state), learnt)

    def refreshed(learnt):
        return learnt._replace(state=preconditioner.refresh(learnt.state, damping))

    def as_it_is(learnt):
        return learnt

    learnt = jax.lax.cond(due(step, settings.every), probed, as_it_is, learnt)
    return jax.lax.cond(due(step, settings.refresh), refreshed, as_it_is, learnt)


def due(step: Array, every: int) -> Array:
    """Whether a step is one of 1, 2, 5, 10, or a multiple of `every`."""
    return jnp.isin(step, jnp.array(EARLY, step.dtype)) | (step % every == 0)
