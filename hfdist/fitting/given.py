"""What a caller hands to a fit, as arrays; a mistake is a UsageError.

B: values of y in rows, N: params.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from hfdist.checks import shown
from hfdist.errors import UsageError
from hfdist.fitting.normal import Blocks, Form
from hfdist.pytree import PyTree

READ = 2**20  # rows looked through at a time for what is not finite


def start_of(p0: PyTree) -> tuple[Form, np.ndarray]:
    """The params' form, and the numbers (N,) that they start from."""
    leaves, structure = jax.tree.flatten(p0)
    try:
        arrays = [_real(leaf).astype(float) for leaf in leaves]
        p_N = np.concatenate([array.ravel() for array in arrays])
        if not np.isfinite(p_N).all():
            raise ValueError
    except (TypeError, ValueError):
        raise UsageError(
            f"p0 is {shown(p0)}: give each param a real, finite number to start from"
        ) from None
    return Form(structure, tuple(array.shape for array in arrays)), p_N


def for_each(name: str, value: Any, form: Form) -> np.ndarray:
    """A number for each param, (N,), of one for all, N of them, or a tree like p0."""
    alike = jax.tree.structure(value) == form.structure
    parts = jax.tree.leaves(value) if alike else [value]
    shapes = form.shapes if alike else [(form.size,)]
    try:
        return np.concatenate(
            [
                np.broadcast_to(_real(part).astype(float), shape).ravel()
                for part, shape in zip(parts, shapes, strict=True)
            ]
        )
    except (TypeError, ValueError):
        raise UsageError(
            f"{name} is {shown(value)}: use one number, one for each of the "
            f"{form.size} params, or a tree like p0"
        ) from None


def bounds_of(bounds: Any, form: Form, p_N: np.ndarray) -> np.ndarray:
    """The least and the greatest params, (2, N)."""
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise UsageError(f"bounds is {shown(bounds)}: use a pair, (low, high)")
    low_N, high_N = (
        for_each(f"bounds[{i}]", bound, form) for i, bound in enumerate(bounds)
    )
    for i in np.flatnonzero(~((low_N < high_N) & (low_N <= p_N) & (p_N <= high_N))):
        raise UsageError(
            f"param {i} starts from {p_N[i]:g}, with bounds {low_N[i]:g} and "
            f"{high_N[i]:g}: give the low one first, and a p0 between"
        )
    return np.stack([low_N, high_N])


def blocks_of(
    x: PyTree, y: Any, sigma: Any, n: int, size: int, mesh: Mesh | None
) -> Blocks:
    """The data, in blocks of `size` rows or an even share for each device."""
    x = jax.tree.map(np.asarray, x, is_leaf=lambda leaf: isinstance(leaf, list))
    y = _real(y, "y")
    if y.ndim == 0 or y.size < n:
        raise UsageError(
            f"y has shape {y.shape}, too few values for {n} params: give at least as "
            f"many"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        if leaf.shape[:1] != y.shape[:1]:
            raise UsageError(
                f"x{jax.tree_util.keystr(path)} has shape {leaf.shape} and y "
                f"{y.shape}: give x a row for each of y's, by .T if it has columns"
            )
    sigma = _real(1.0 if sigma is None else sigma, "sigma")
    if sigma.ndim and sigma.shape != y.shape:
        raise UsageError(
            f"sigma has shape {sigma.shape} and y {y.shape}: give one standard "
            f"deviation, or one for each value of y"
        )
    share = -(-len(y) // (1 if mesh is None else mesh.size))
    return Blocks(x, y, np.broadcast_to(sigma, y.shape), min(size, share), mesh)


def check_model(model: Callable, form: Form, blocks: Blocks) -> None:
    """Raise UsageError for a model that does not take x and the params."""
    params = form.tree_of(np.zeros(form.size))
    spread = params if isinstance(params, list | tuple) else (params,)
    try:
        inspect.signature(model).bind(blocks.x, *spread)
        hash(model)
    except TypeError as error:
        raise UsageError(
            f"the model cannot be called with x and {len(spread)} more ({error}): "
            f"it is model(x, a, b) for p0 = (1.0, 2.0), and model(x, params) for a p0 "
            f"that is no list or tuple; it must be hashable, as functions are"
        ) from None


def not_finite(blocks: Blocks) -> str:
    """Why the sum of squares is not finite where the fit starts."""
    named = jax.tree_util.tree_leaves_with_path({"x": blocks.x, "y": blocks.y})
    tests = [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf, np.isfinite)
        for path, leaf in named
    ]
    for name, array, sound in [*tests, ("sigma", blocks.sigma, lambda s: s > 0)]:
        for first in range(0, len(array), READ):
            rows = np.argwhere(~sound(array[first : first + READ]))
            if rows.size:
                wrong = "not positive" if name == "sigma" else "not finite"
                return f"{name} is {wrong} in row {first + rows[0, 0]}: leave it out"
    return "the model, or its derivative, is not finite at p0: start elsewhere"


def _real(value: Any, name: str = "it") -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "buif":
        raise UsageError(f"{name} is of {array.dtype}: give real numbers")
    return array
