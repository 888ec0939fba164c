"""M = G's largest eigenvalues, and one number for all others.

A sketch Y = G Ω of r random vectors gives the Nyström approximation of rank r

    Ĝ = Y (Ωᵀ Y)⁺ Yᵀ = U Λ Uᵀ

(Frangella, Tropp & Udell 2021, "Randomized Nyström preconditioning"). Vectors are
pytrees; those of U, Ω and Y are rows, with leaves (R, …), and R is r. Devices that
share vectors out have a part of each row.

Departures from their algorithm 2.1, which factorises Ωᵀ Y shifted by a rounding:
(1) Ωᵀ Y is inverted by its eigenvectors, and what is rounding there left out: G of a
    small batch or with dead units has a lower rank than r, where no shift is sure.
(2) Ω is not made orthonormal: Ĝ depends on its span alone.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from optax import tree

from hfdist.preconditioner import (
    WHOLE,
    Held,
    Preconditioner,
    Probes,
    Samples,
    where_due,
)
from hfdist.pytree import PyTree, parameter_count, widen

HIGHEST = jax.lax.Precision.HIGHEST
ROUNDINGS = 10  # of a trace, up to which an eigenvalue is rounding


class Sketch(NamedTuple):
    """Ĝ = U Λ Uᵀ."""

    vectors: PyTree  # Uᵀ, leaves (R, …), orthonormal; 0 for eigenvalues that are none
    values: Array  # Λ (R,), ascending, all > 0


def nystrom(settings: Probes) -> Preconditioner:
    """M⁻¹ v = v + U ((λᵣ + λ) (Λ + λ)⁻¹ - I) Uᵀ v,   λᵣ the least of Λ

    (Frangella et al. 2021): eigenvalues Λ + λ of G + λI are brought to that of
    all others at most, λᵣ + λ. r is `rank`, N at most. A sketch is r products at once,
    with one all-reduce of r N numbers; one that is not finite counts for nothing. Where
    λᵣ is small, M of an earlier G may cost CG more steps than it saves.
    Memory: r N numbers, three times as many during a sketch, and the activations of r
    forward passes.
    """

    def init(params):
        r = min(settings.rank, parameter_count(params))
        wide = widen(params)
        rows = jax.tree.map(lambda leaf: jnp.zeros((r, *leaf.shape), leaf.dtype), wide)
        return Sketch(rows, jnp.ones(r, jax.tree.leaves(wide)[0].dtype))

    def learn(sketch, samples, step, damping):
        del damping
        update = partial(_sketched, samples, step)
        return where_due(step, settings.every, update, sketch)

    def on_shared(functions, sketch):
        return sketch._replace(vectors=functions.rows(sketch.vectors))

    return Preconditioner(init, learn, _apply, on_shared)


def _sketched(samples: Samples, step: Array, sketch: Sketch) -> Sketch:
    """The sketch of this step."""
    held = samples.held
    whole = jax.eval_shape(jax.vmap(held.expand), sketch.vectors)
    omega = jax.vmap(held.part)(_drawn(step, whole))
    y = jax.vmap(samples.product)(omega)
    core_RR = _inners(held.inner, omega, y)
    s_R, e_RR = jnp.linalg.eigh((core_RR + core_RR.T) / 2)
    # Ĝ = B Bᵀ, of which Bᵀ B has the eigenvalues.
    b = _combined((e_RR * _inverse_roots(s_R)).T, y)
    values_R, w_RR = jnp.linalg.eigh(_inners(held.inner, b, b))
    vectors = _combined((w_RR * _inverse_roots(values_R)).T, b)
    values_R = jnp.maximum(values_R, _rounding(values_R))
    finite = jnp.isfinite(held.inner(vectors, vectors))
    finite &= jnp.all(jnp.isfinite(values_R))
    return tree.where(finite, Sketch(vectors, values_R), sketch)


def _apply(
    sketch: Sketch, damping: Array, vector: PyTree, held: Held = WHOLE
) -> PyTree:
    values_R = sketch.values + damping
    row = jax.tree.map(lambda leaf: leaf[None], vector)
    along_1R = _inners(held.inner, row, sketch.vectors)
    change = _combined(along_1R * (values_R[0] / values_R - 1), sketch.vectors)
    return jax.tree.map(lambda v, rows: v + rows[0], vector, change)


def _drawn(step: Array, like: PyTree) -> PyTree:
    """Standard normal numbers, other ones each step and the same on every device."""

    def drawn(key, shape, dtype):
        return jax.random.normal(key, shape, dtype)

    return tree.random_like(jax.random.fold_in(jax.random.key(0), step), like, drawn)


def _inners(inner: Callable, a: PyTree, b: PyTree) -> Array:
    """⟨aᵢ, bⱼ⟩ (Ra, Rb) of the rows."""
    return jax.vmap(lambda x: jax.vmap(lambda y: inner(x, y))(b))(a)


def _combined(k_SR: Array, rows: PyTree) -> PyTree:
    """Σⱼ kᵢⱼ rowⱼ, leaves (S, …)."""
    return jax.tree.map(
        lambda row: jnp.tensordot(k_SR, row, 1, precision=HIGHEST), rows
    )


def _rounding(values_R: Array) -> Array:
    """Up to where eigenvalues of a semidefinite matrix may be rounding; above 0."""
    info = jnp.finfo(values_R.dtype)
    return jnp.maximum(ROUNDINGS * info.eps * jnp.sum(values_R), info.tiny)


def _inverse_roots(values_R: Array) -> Array:
    """1 / √value, 0 where the value is rounding."""
    sound = values_R > _rounding(values_R)
    return jnp.where(sound, 1 / jnp.sqrt(jnp.where(sound, values_R, 1)), 0)
