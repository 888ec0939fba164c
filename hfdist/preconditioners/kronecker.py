"""M = L ⊗ R / tr L + λ for each kernel, a diagonal for every other leaf.

A leaf of shape (…, n) counts as a matrix (m, n). For its part V of a probe

    L = E[V Vᵀ]  (m, m),   R = E[Vᵀ V]  (n, n),   T = tr L = tr R,

and L ⊗ R / T is the Kronecker product with the partial traces of the leaf's block of G:
the block itself where that is one, as a layer's is for inputs that are independent of
the derivatives behind it (Martens & Grosse 2015).

Devices that share vectors out have 1/P of the rows of each matrix whose side they
divide: their own rows of its average and of the products with its inverse are all that
they compute. The inverse itself each computes whole.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular

from hfdist.preconditioner import Held, Preconditioner, Probes, averaging
from hfdist.pytree import PyTree, widen

HIGHEST = jax.lax.Precision.HIGHEST


class Factors(NamedTuple):
    """The averages of one kernel, and the damped inverses that are applied.

    Of a side longer than `largest_side` the diagonals alone, (m,) or (n,).
    """

    left: Array  # L (m, m), or a device's rows of it
    right: Array  # R (n, n)
    left_inverse: Array
    right_inverse: Array


def kronecker(settings: Probes) -> Preconditioner:
    """M⁻¹ by factored damping (Martens & Grosse 2015, section 6.3), for a kernel V

        M⁻¹ V = (L / √T + √(λ n/m))⁻¹  V  (R / √T + √(λ m/n))⁻¹,

    in which both factors are damped in the same proportion to their mean eigenvalues.
    Other leaves are divided by E[V²] + λ. Memory: 2 (m² + n²) numbers for a kernel.
    """
    return averaging(
        settings,
        init=partial(_init, settings.largest_side),
        update=_update,
        refresh=_refresh,
        apply=_apply,
        on_shared=_on_shared,
    )


def _init(largest: int, params: PyTree) -> list[Any]:
    def zeros(leaf):
        if leaf.ndim < 2:
            return jnp.zeros_like(leaf)
        shapes = [(k, k) if k <= largest else (k,) for k in _matrix(leaf).shape]
        return Factors(*(jnp.zeros(shape, leaf.dtype) for shape in shapes * 2))

    return [zeros(leaf) for leaf in jax.tree.leaves(widen(params))]


def _on_shared(functions, state: list[Any]) -> list[Any]:
    return jax.tree.map(lambda a: functions.matrix(a) if a.ndim == 2 else a, state)


def _update(state: list[Any], probe: PyTree, kept: Array, held: Held) -> list[Any]:
    def averaged(average, new):
        return kept * average + (1 - kept) * new

    def updated(known, v):
        if not isinstance(known, Factors):
            return averaged(known, v * v)
        v_MN = _matrix(v)
        return known._replace(
            left=averaged(known.left, _second_moment(v_MN, known.left, held)),
            right=averaged(known.right, _second_moment(v_MN.T, known.right, held)),
        )

    return list(map(updated, state, jax.tree.leaves(held.expand(probe))))


def _refresh(state: list[Any], damping: Array, held: Held) -> list[Any]:
    def refreshed(known):
        if not isinstance(known, Factors):
            return known
        left, right = (_whole(side, held) for side in (known.left, known.right))
        m, n = len(left), len(right)
        tiny = jnp.finfo(damping.dtype).tiny
        root = jnp.sqrt(jnp.maximum(_trace(left), tiny))  # √T
        inverses = (
            _inverse(left / root, jnp.sqrt(damping * n / m)),
            _inverse(right / root, jnp.sqrt(damping * m / n)),
        )
        sides = known.left, known.right
        return Factors(
            *sides, *(_rows(*pair, held) for pair in zip(inverses, sides, strict=True))
        )

    return list(map(refreshed, state))


def _apply(state: list[Any], damping: Array, vector: PyTree, held: Held) -> PyTree:
    def applied(known, v):
        if not isinstance(known, Factors):
            return v / (known + damping)
        half_MN = _times(known.left_inverse, _matrix(v), held)
        return _times(known.right_inverse, half_MN.T, held).T.reshape(v.shape)

    leaves, structure = jax.tree.flatten(held.expand(vector))
    return held.part(structure.unflatten(map(applied, state, leaves)))


def _matrix(leaf: Array) -> Array:
    return leaf.reshape(-1, leaf.shape[-1])


def _in_parts(side: Array) -> bool:
    """Whether a matrix is a device's rows of one."""
    return side.ndim == 2 and side.shape[0] < side.shape[1]


def _whole(side: Array, held: Held) -> Array:
    return held.gather(side) if _in_parts(side) else side


def _rows(whole: Array, like: Array, held: Held) -> Array:
    """What a device has of a matrix, as it has of another."""
    return held.share(whole) if _in_parts(like) else whole


def _second_moment(v_MN: Array, side: Array, held: Held) -> Array:
    """V Vᵀ (m, m), or this device's rows of it; or its diagonal (m,)."""
    if side.ndim == 1:
        return jnp.sum(v_MN * v_MN, 1)
    return _rows(v_MN, side, held) @ v_MN.T


def _trace(side: Array) -> Array:
    return jnp.trace(side) if side.ndim == 2 else jnp.sum(side)


def _inverse(side: Array, damping: Array) -> Array:
    """(side + damping I)⁻¹; damped by 10 roundings of its trace at the least.

    So that its Cholesky factor exists, whatever λ.
    """
    least = 10 * jnp.finfo(side.dtype).eps * _trace(side)
    damping = jnp.maximum(jnp.maximum(damping, least), jnp.finfo(side.dtype).tiny)
    if side.ndim == 1:
        return 1 / (side + damping)
    identity = jnp.eye(len(side), dtype=side.dtype)
    factor = jnp.linalg.cholesky(side + damping * identity)
    root = solve_triangular(factor, identity, lower=True)
    return jnp.matmul(root.T, root, precision=HIGHEST)


def _times(side: Array, v_MN: Array, held: Held) -> Array:
    if side.ndim == 1:
        return side[:, None] * v_MN
    product = jnp.matmul(side, v_MN, precision=HIGHEST)
    return held.gather(product) if _in_parts(side) else product
