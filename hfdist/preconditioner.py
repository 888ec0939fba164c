"""What makes CG's steps fewer: M⁻¹ ≈ (C + λI)⁻¹, learnt from samples of G.

The solution of (C + λI) d = -g is the same with M as without, only sooner. M needs no
names of layers: it learns from vectors like the params, the probes V of probes.py with
E[vec V vec Vᵀ] = G, by averages over steps, or the products G v.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from optax import tree

from hfdist.checks import Count, Fraction, Positive, Settings
from hfdist.pytree import PyTree, inner, same
from hfdist.sharing import Functions

EARLY = (1, 2, 5, 10)  # steps at which all is due: the first probes teach the most


@dataclass(frozen=True, kw_only=True)
class Probes(Settings):
    """How a preconditioner learns: from probes, or from products (nystrom)."""

    every: Count = 1
    """Steps from one probe to the next, each about a gradient; or from one
    sketch to the next, each `rank` products (nystrom)."""
    decay: Fraction = 0.95
    """What an average keeps of itself at a new probe; the first probes count alike."""
    refresh: Count = 20
    """Steps from one inversion of the averages to the next (kronecker)."""
    largest_side: Count = 4096
    """Side of a kernel up to which a matrix, not a diagonal, is kept (kronecker)."""
    exponent: Positive = 0.75
    """Power of E[V²] + λ to divide by (diagonal; Martens 2010: 0.75)."""
    rank: Count = 10
    """Products in a sketch, and eigenvalues that it takes out (nystrom)."""


class Held(NamedTuple):
    """How a device holds vectors like the params, and matrices: whole, or a part."""

    inner: Callable[[PyTree, PyTree], Array] = inner  # ⟨u, v⟩
    expand: Callable[[PyTree], PyTree] = same  # vector -> whole tree like the params
    part: Callable[[PyTree], PyTree] = same  # whole tree -> vector
    gather: Callable[[Array], Array] = same  # a device's rows -> those of all
    share: Callable[[Array], Array] = same  # the rows of all -> this device's


WHOLE = Held()


class Samples(NamedTuple):
    """What G is learnt from, over the examples of a step; a call is what costs."""

    probe: Callable[[Array], PyTree]  # step -> V, E[vec V vec Vᵀ] = G, no penalty in it
    product: Callable[[PyTree], PyTree]  # v -> G v, with the penalty, without λ
    held: Held = WHOLE  # how these vectors are


class Preconditioner(NamedTuple):
    """Pure functions of a state, a pytree of arrays that is part of the method's."""

    init: Callable[[PyTree], Any]  # params -> state, of no sample yet
    # state, samples, step counted from 1, λ -> state, with what is due at that step
    learn: Callable[[Any, Samples, Array, Array], Any]
    # state, λ, v, held -> M⁻¹ v, M definite
    apply: Callable[[Any, Array, PyTree, Held], PyTree]
    # functions, state -> the state with one of them applied to what devices may share
    on_shared: Callable[[Functions, Any], Any]


class Learnt(NamedTuple):
    """The averages of so many probes, and what is made of them."""

    probes: Array  # () int32
    state: Any


def averaging(
    settings: Probes,
    init: Callable[[PyTree], Any],  # params -> state
    update: Callable[
        [Any, PyTree, Array, Held], Any
    ],  # state, V, what is kept -> state
    refresh: Callable[[Any, Array, Held], Any],  # state, λ -> state: its inverses
    apply: Callable[[Any, Array, PyTree, Held], PyTree],  # state, λ, v -> M⁻¹ v
    on_shared: Callable[[Functions, Any], Any],  # functions, state -> state
) -> Preconditioner:
    """A preconditioner that learns by averages over the probes of steps.

    The k-th probe weighs max(1 - decay, 1/k). One that is not finite counts for none.
    """

    def learn(learnt, samples, step, damping):
        held = samples.held

        def probed(learnt):
            probe, count = samples.probe(step), learnt.probes + 1
            kept = jnp.minimum(settings.decay, 1 - 1 / count.astype(damping.dtype))
            state = update(learnt.state, probe, kept, held)
            finite = jnp.isfinite(held.inner(probe, probe))
            return tree.where(finite, Learnt(count, state), learnt)

        def refreshed(learnt):
            return learnt._replace(state=refresh(learnt.state, damping, held))

        learnt = where_due(step, settings.every, probed, learnt)
        return where_due(step, settings.refresh, refreshed, learnt)

    return Preconditioner(
        init=lambda params: Learnt(jnp.int32(0), init(params)),
        learn=learn,
        apply=lambda learnt, damping, v, held=WHOLE: apply(
            learnt.state, damping, v, held
        ),
        on_shared=lambda functions, learnt: learnt._replace(
            state=on_shared(functions, learnt.state)
        ),
    )


def where_due(step: Array, every: int, learn: Callable[[Any], Any], state: Any) -> Any:
    """learn(state) at the steps that are due, the state as it is at others."""
    return jax.lax.cond(due(step, every), learn, lambda state: state, state)


def due(step: Array, every: int) -> Array:
    """Whether a step is one of 1, 2, 5, 10, or a multiple of `every`."""
    return jnp.isin(step, jnp.array(EARLY, step.dtype)) | (step % every == 0)
