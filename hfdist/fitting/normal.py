"""The normal equations of least squares, summed over data some rows at a time.

    S(p) = Σ rᵢ²,   g = Jᵀ r,   A = Jᵀ J,   r = (model(x, p) - y) / σ,   J = ∂r/∂p

Each device takes a block of rows from the host's arrays, or from the files that these
are mapped from, and the sums of the blocks are added up on the host, in the order of
the rows: for blocks of one size the result is the same, to the last digit, on any
number of devices and processes.

B: rows, M: values in a block, N: params, P: devices.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from hfdist.errors import UsageError
from hfdist.parallel import (
    collectives,
    data_parallel,
    local_rows,
    place_rows,
    replicate,
)
from hfdist.pytree import PyTree


class Form(NamedTuple):
    """What the params are as a tree, beside their numbers (N,); hashable."""

    structure: Any
    shapes: tuple[tuple[int, ...], ...]  # of the leaves

    @property
    def size(self) -> int:
        """N."""
        return sum(map(math.prod, self.shapes))

    def tree_of(self, p_N: Any) -> PyTree:
        """The params of a vector, its own parts."""
        leaves, start = [], 0
        for shape in self.shapes:
            stop = start + math.prod(shape)
            leaves.append(p_N[start:stop].reshape(shape))
            start = stop
        return jax.tree.unflatten(self.structure, leaves)


class Normal(NamedTuple):
    """The normal equations at some params."""

    squares: float  # S
    rounding: float  # of S: u S + u ‖∂S/∂z ∘ z‖ for the model's values z
    slope_N: np.ndarray  # g, half of ∇S
    matrix_NN: np.ndarray  # A


@dataclass(frozen=True)
class Blocks:
    """Data on the host; iterated over, on the devices, a block of rows on each."""

    x: PyTree  # leaves (B, …)
    y: np.ndarray  # (B, …)
    sigma: np.ndarray  # like y
    size: int  # rows of a block
    mesh: Mesh | None

    @property
    def at_once(self) -> int:
        """Rows on all the devices."""
        return self.size * (1 if self.mesh is None else self.mesh.size)

    def __iter__(self) -> Iterator[Any]:
        return map(self._placed, range(0, len(self.y), self.at_once))

    def _placed(self, first: int) -> Any:
        """The blocks from a row on, padded by copies of the last with σ = ∞."""
        mine = local_rows(self.at_once, self.mesh)
        start, stop = first + mine.start, first + mine.stop

        def padded(array: np.ndarray, last: np.ndarray) -> np.ndarray:
            part = array[start:stop]
            missing = stop - start - len(part)
            return np.concatenate([part, np.repeat(last, missing, axis=0)])

        batch = {
            "x": jax.tree.map(lambda leaf: padded(leaf, leaf[-1:]), self.x),
            "y": padded(self.y, self.y[-1:]),
            "sigma": padded(self.sigma, np.full(self.sigma[-1:].shape, np.inf)),
        }
        return place_rows(batch, self.mesh)


def applied(model: Callable, x: PyTree, params: PyTree) -> Any:
    """model(x, *params) for a list or tuple of params, model(x, params) for others."""
    return model(x, *params) if isinstance(params, list | tuple) else model(x, params)


def normal_equations(
    model: Callable,
    form: Form,
    mesh: Mesh | None,
    batches: Iterable[Any],
    p_N: np.ndarray,
    basis_NN: np.ndarray,
) -> Normal:
    """S, Mᵀ g and Mᵀ A M of all the data at p, for a basis M, in one pass over it."""
    point, n = (p_N, basis_NN), len(p_N)
    if mesh is not None:
        point = replicate(point, mesh)
    total_K = np.zeros(2 + n + n * n)
    for batch in batches:
        for sums_K in np.asarray(_sums(model, form, mesh, point, batch)):
            total_K += sums_K
    squares, errors = total_K[:2].tolist()
    if not np.isfinite(total_K[2:]).all():
        squares = math.inf
    # These overflow sooner than S itself.
    errors = math.sqrt(errors) if math.isfinite(errors) else 0.0
    rounding = float(np.finfo(float).eps) * (squares + errors)
    return Normal(squares, rounding, total_K[2 : 2 + n], total_K[2 + n :].reshape(n, n))


@partial(jax.jit, static_argnames=("model", "form", "mesh"))
def _sums(
    model: Callable, form: Form, mesh: Mesh | None, point: Any, batch: Any
) -> Array:
    """What the block of each device adds: rows (P, 2 + N + N²), on every device."""
    devices = collectives(mesh)

    def local(gradient, state, point, batch):
        del gradient, state
        return devices.gather(_of_block(model, form, devices.vary(point), batch)[None])

    return data_parallel(local, mesh)(None, None, point, batch)


def _of_block(model: Callable, form: Form, point: Any, batch: Any) -> Array:
    """S, ‖∂S/∂z ∘ z‖², Mᵀ g and Mᵀ A M of a block, J M by columns in forward mode."""
    p_N, basis_NN = point
    wide = jax.tree.map(_wide, batch)
    y, sigma = wide["y"], wide["sigma"]
    per_sigma = jnp.where(sigma > 0, 1 / sigma, jnp.nan)

    def residuals(p_N):
        z = applied(model, wide["x"], form.tree_of(p_N))
        if jnp.shape(z) not in ((), y.shape):
            raise UsageError(
                f"the model gives shape {jnp.shape(z)} for {len(y)} rows of x, where y "
                f"has {y.shape}: return a value for each of y, or one for all"
            )
        return jnp.ravel(per_sigma * (z - y)), jnp.ravel(per_sigma * z)

    r_M, along, z_M = jax.linearize(residuals, p_N, has_aux=True)
    j_NM = jax.vmap(along, 1)(basis_NN)
    errors = jnp.sum(jnp.square(2 * r_M * z_M))
    return jnp.concatenate(
        [jnp.stack([r_M @ r_M, errors]), j_NM @ r_M, jnp.ravel(j_NM @ j_NM.T)]
    )


def _wide(array: Array) -> Array:
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(jnp.float64) if floating else array
