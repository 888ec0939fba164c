"""What devices may share out beside the batch: vectors, or the params with all of them.

A vector that the method makes of the params (a gradient, a direction, all that CG
holds) is whole on every device, or shared out, each device having 1/P of it. Then

    spread(v)     before multiplying: this device's own copy of the whole, one
                  all-gather, and
    collect(sums) after: the sum over devices as a vector, one reduce-scatter,

with a ⟨u, v⟩ that sums over devices. Together they send what an all-reduce does. Such a
vector is flat, a `Shard`.

Or the params are shared out, and with them all that is like them: of each leaf a device
has a part along one axis, by its shape alone. predict gathers a leaf where it is used;
the transpose of that is the reduce-scatter that sums over devices, so that a vector is
spread as it is, and of the sums those of whole leaves alone are left to add up.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from hfdist.pytree import inner, same, widen

AXIS = "data"
# Shards are of a length that any usual number of devices divides, so that a state does
# not depend on it: 2¹⁰ · 3² · 5.
MULTIPLE = 46_080

Sharding = Literal["replicated", "vectors", "params"]
Axes = tuple[int | None, ...]  # of each leaf, the one that is split; None: it is whole


class Shard(NamedTuple):
    """A vector like the params, shared out over the devices: flat, padded by zeros."""

    part: Any  # (n / P,) of a device inside of `data_parallel`; outside (n,), of all


class Vectors(NamedTuple):
    """How a method's vectors are held, beside params that a device holds as `like`."""

    spread: Callable[[Any, Any], Any]  # vector, like -> per-device tree, like `like`
    collect: Callable[[Any, Any], Any]  # per-device sums, scalars -> vector, scalars
    part: Callable[[Any], Any]  # tree held as the params are -> vector
    expand: Callable[[Any, Any], Any]  # vector, like -> tree held as the params are
    inner: Callable[[Any, Any], Any]  # ⟨u, v⟩, replicated
    shared: bool = False  # each device has a part of them


class Functions(NamedTuple):
    """Functions of what devices may share out in a method's state."""

    vector: Callable[[Any], Any]  # of a tree like the params
    rows: Callable[[Any], Any]  # of several, leaves (R, …)
    matrix: Callable[[Any], Any]  # of a square matrix, which is shared by its rows


def all_reduce(tree: Any) -> Any:
    """One buffer, whatever the number of leaves: each would pay the latency again.

    Leaves of several dtypes are summed in the widest of them.
    """
    if not jax.tree.leaves(tree):
        return tree
    flat, unravel = ravel_pytree(tree)
    with jax.named_scope("all_reduce"):
        return unravel(jax.lax.psum(flat, AXIS))


def gather(tree: Any, axis: int = 0) -> Any:
    """Parts along an axis -> the whole, replicated."""
    return jax.lax.all_gather(tree, AXIS, axis=axis, tiled=True, to="invarying")


def share(array: Any, axis: int = 0) -> Any:
    """The whole -> this device's part along an axis."""
    size = array.shape[axis] // jax.lax.axis_size(AXIS)
    start = jax.lax.axis_index(AXIS) * size
    return jax.lax.dynamic_slice_in_dim(array, start, size, axis)


def whole_vectors(vary: Callable, reduce: Callable) -> Vectors:
    """Vectors that every device has whole, as it has the params."""
    return Vectors(
        spread=lambda vector, like: vary(vector),
        collect=lambda sums, scalars: reduce((sums, scalars)),
        part=same,
        expand=lambda vector, like: vector,
        inner=inner,
    )


def _spread(vector: Shard, like: Any) -> Any:
    whole = jax.lax.all_gather(vector.part, AXIS, tiled=True)
    return _unflat(whole, like)


def _collect(sums: Any, scalars: Any) -> tuple[Shard, Any]:
    return Shard(_scattered(_flat(sums))), all_reduce(scalars)


def _scattered(flat: Any) -> Any:
    """This device's part of the sum over devices."""
    scatter = partial(jax.lax.psum_scatter, axis_name=AXIS, tiled=True)
    if jax.process_count() == 1:
        return scatter(flat)
    return jax.lax.platform_dependent(flat, cpu=_exchanged, default=scatter)


def _exchanged(flat: Any) -> Any:
    """The same for gloo, whose reduce-scatter takes longer than its all-reduce."""
    parts = flat.reshape(jax.lax.axis_size(AXIS), -1)
    return jnp.sum(jax.lax.all_to_all(parts, AXIS, 0, 0), 0)


def _flat(tree: Any) -> Any:
    """A tree of one dtype as one array, padded by zeros to a multiple of MULTIPLE."""
    flat, _ = ravel_pytree(tree)
    return jnp.pad(flat, (0, -len(flat) % MULTIPLE))


def _unflat(flat: Any, like: Any) -> Any:
    """The tree that `_flat` made so, like the params in their working dtype."""
    whole, unravel = ravel_pytree(widen(like))
    return unravel(flat[: len(whole)])


SHARED = Vectors(
    spread=_spread,
    collect=_collect,
    part=lambda tree: Shard(share(_flat(tree))),
    expand=lambda vector, like: _unflat(gather(vector.part), like),
    inner=lambda u, v: jax.lax.psum(inner(u, v), AXIS),
    shared=True,
)


def split(leaf: Any, devices: int, rows: int = 0) -> P:
    """Where a leaf is that devices share out, by its shape behind so many axes of rows.

    Each has a part along the longest axis that they divide, the first of several; the
    whole where there is none.
    """
    sizes = [0 if size % devices else size for size in leaf.shape]
    sizes[:rows] = [0] * rows
    longest = max(sizes, default=0)
    return P(*[None] * sizes.index(longest), AXIS) if longest else P()


def axes_of(params: Any, devices: int) -> Axes:
    """The axes along which so many devices share the leaves of whole params."""
    specs = [split(leaf, devices) for leaf in jax.tree.leaves(params)]
    return tuple(len(spec) - 1 if len(spec) else None for spec in specs)


def split_vectors(axes: Axes, own: Callable) -> Vectors:
    """Vectors of which a device has what it has of the params."""

    def collect(sums, scalars):
        # Those of a part are sums over the devices, from the transpose of gathering it.
        leaves, structure = jax.tree.flatten(sums)
        places = [k for k, axis in enumerate(axes) if axis is None]
        whole, scalars = all_reduce(([leaves[k] for k in places], scalars))
        for k, leaf in zip(places, whole, strict=True):
            leaves[k] = leaf
        return structure.unflatten(leaves), scalars

    return Vectors(
        spread=lambda vector, like: own(vector),
        collect=collect,
        part=same,
        expand=lambda vector, like: vector,
        inner=partial(inner_of_parts, axes),
        shared=True,
    )


def inner_of_parts(axes: Axes, u: Any, v: Any) -> Any:
    """⟨u, v⟩ of trees held as the params are, replicated."""
    parts, wholes = [], []
    for axis, *pair in zip(axes, jax.tree.leaves(u), jax.tree.leaves(v), strict=True):
        (wholes if axis is None else parts).append(inner(*pair))
    return sum(wholes) + (jax.lax.psum(sum(parts), AXIS) if parts else 0)


def own_parts(axes: Axes, vary: Callable[[Any], Any], tree: Any) -> Any:
    """A tree held as the params are -> a device's own: a part is its own already."""
    return _by_axes(axes, tree, lambda leaf, axis: leaf, vary)


def own_whole(axes: Axes, tree: Any) -> Any:
    """A tree held as the params are -> a device's own of the whole.

    Derivatives in the parts are sums over the devices.
    """
    whole = partial(jax.lax.all_gather, axis_name=AXIS, tiled=True)
    return _by_axes(axes, tree, lambda leaf, axis: whole(leaf, axis=axis))


def together(axes: Axes, tree: Any) -> Any:
    """A tree held as the params are -> the whole, replicated."""
    return _by_axes(axes, tree, gather)


def parts_of(axes: Axes, tree: Any) -> Any:
    """The inverse of `together`."""
    return _by_axes(axes, tree, share)


def _by_axes(
    axes: Axes,
    tree: Any,
    of_part: Callable[[Any, int], Any],
    of_whole: Callable[[Any], Any] = same,
) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    pairs = zip(leaves, axes, strict=True)
    return structure.unflatten(
        [of_whole(leaf) if d is None else of_part(leaf, d) for leaf, d in pairs]
    )


def places(sharding: Sharding, devices: int) -> Functions:
    """Of what is shared out, where it is."""

    def parts(tree, rows=0):
        return jax.tree.map(partial(split, devices=devices, rows=rows), tree)

    if sharding == "vectors":
        return Functions(same, same, parts)  # `specs_of` knows shards
    return Functions(parts, partial(parts, rows=1), parts)


def specs_of(tree: Any) -> Any:
    """Where the leaves of a state are: shards a part on each device, all else whole.

    A place is left as it is.
    """

    def spec(node):
        if isinstance(node, Shard):
            return Shard(P(*[None] * (node.part.ndim - 1), AXIS))
        return node if isinstance(node, P) else P()

    return jax.tree.map(spec, tree, is_leaf=lambda node: isinstance(node, Shard | P))


def described(tree: Any, mesh: Mesh | None, places: Any = None) -> Any:
    """Arrays without their values, each at its place; without places all are whole."""
    if places is None:
        places = jax.tree.map(lambda _: P(), tree)

    def array(leaf, spec):
        place: Any = SingleDeviceSharding(jax.local_devices()[0])
        if mesh is not None:
            place = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return jax.tree.map(array, tree, places)


def share_out(sharding: Sharding, mesh: Mesh | None) -> Functions:
    """Of what is whole on every device, what each has where they share it out.

    Without a mesh nothing is placed: it is what its arrays are.
    """
    parts = partial(_split_out, mesh=mesh)
    if sharding == "vectors":
        shard = partial(_flat_out, mesh=mesh)
        return Functions(shard, partial(shard, rows=1), parts)
    return Functions(parts, partial(parts, rows=1), parts)


def bring_together(sharding: Sharding, mesh: Mesh | None, like: Any) -> Functions:
    """Of what `share_out` made, what is whole on every device; vectors like `like`."""
    whole = partial(_whole_again, mesh=mesh)
    if sharding == "vectors":
        unflat = partial(_flat_again, like=like, mesh=mesh)
        return Functions(unflat, partial(unflat, rows=1), whole)
    return Functions(whole, whole, whole)


@partial(jax.jit, static_argnames=("mesh", "rows"))
def _flat_out(tree: Any, mesh: Mesh | None, rows: int = 0) -> Shard:
    flat = jax.vmap(_flat)(tree) if rows else _flat(tree)
    return Shard(_placed(flat, mesh, P(*[None] * rows, AXIS)))


@partial(jax.jit, static_argnames=("mesh", "rows"))
def _flat_again(vector: Shard, like: Any, mesh: Mesh | None, rows: int = 0) -> Any:
    unflat = partial(_unflat, like=like)
    whole = _placed(vector.part, mesh, P())
    return jax.vmap(unflat)(whole) if rows else unflat(whole)


@partial(jax.jit, static_argnames=("mesh", "rows"))
def _split_out(tree: Any, mesh: Mesh | None, rows: int = 0) -> Any:
    devices = 1 if mesh is None else mesh.size
    return jax.tree.map(lambda a: _placed(a, mesh, split(a, devices, rows)), tree)


@partial(jax.jit, static_argnames="mesh")
def _whole_again(tree: Any, mesh: Mesh | None) -> Any:
    return jax.tree.map(lambda a: _placed(a, mesh, P()), tree)


def _placed(array: Any, mesh: Mesh | None, spec: P) -> Any:
    if mesh is None:
        return array
    place = jax.reshard if explicit(array) else jax.lax.with_sharding_constraint
    return place(array, NamedSharding(mesh, spec))


def explicit(arguments: Any) -> bool:
    """Whether JAX holds the arguments' shardings to be part of their types."""
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(arguments)]
    meshes.append(jax.sharding.get_abstract_mesh())
    return any(AxisType.Explicit in mesh.axis_types for mesh in meshes)
