"""What optax.tree lacks for vectors that are pytrees of arrays."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from optax import tree

from hfdist.errors import UsageError

PyTree = Any


def same(tree: PyTree) -> PyTree:
    """The tree as it is, where a function of it is asked for."""
    return tree


def inner(a: PyTree, b: PyTree) -> Array:
    """⟨a, b⟩ over all leaves, multiplied at full precision."""
    return jnp.asarray(tree.sum(jax.tree.map(_inner_of_leaf, a, b)))


def _inner_of_leaf(a: Array, b: Array) -> Array:
    """Not `vdot`, whose reshape brings together what a mesh's other axes split."""
    return jnp.tensordot(a, b, a.ndim, precision=jax.lax.Precision.HIGHEST)


def inners(
    us: Sequence[PyTree],
    vs: Sequence[PyTree],
    inner: Callable[[PyTree, PyTree], Array] = inner,
) -> Array:
    """⟨uᵢ, vⱼ⟩, a matrix."""
    return jnp.array([[inner(u, v) for v in vs] for u in us])


def divide(a: PyTree, scalar: Array) -> PyTree:
    """a / scalar, leaf by leaf, each in its own dtype."""
    return jax.tree.map(lambda leaf: leaf / scalar.astype(leaf.dtype), a)


def parameter_count(params: PyTree) -> int:
    """N, the number of scalars in params."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def working_dtype(params: PyTree) -> jnp.dtype:
    """The one dtype of sums and solver vectors: the widest leaf's, float32 at least."""
    return widest(jnp.float32, *(leaf.dtype for leaf in jax.tree.leaves(params)))


def widest(*dtypes: Any) -> jnp.dtype:
    """The dtype that holds the numbers of all, also where JAX promotes none itself."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def widen(params: PyTree) -> PyTree:
    """params in their working dtype; themselves where they have it already."""
    return tree.cast(params, working_dtype(params))


def roundoff(params: PyTree) -> float:
    """u, the relative spacing of the numbers of the narrowest leaf's dtype."""
    return max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(params))


def check_differentiable(params: PyTree) -> None:
    """Raise UsageError, naming it, for a leaf that is no array of real numbers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            name = jax.tree_util.keystr(path)
            kind = type(leaf).__name__ if dtype is None else dtype
            raise UsageError(
                f"params{name} is {kind}: every leaf of the params is trained, so keep "
                f"this one outside, with all else that is frozen: close over it in "
                f"predict (equinox.partition, flax.nnx.split)"
            )
