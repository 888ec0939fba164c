"""Data parallelism: the only file that names a mesh axis.

The mathematics is single-device code over one device's share of the batch. It calls

    vary(tree)    before differentiating: makes replicated params (or a CG vector) this
                  device's own, so that no derivative sums over devices by itself, and
    reduce(tree)  after: the sum over devices of local sums, one all-reduce.

On one device both are the identity. `data_parallel` wraps a whole optimiser update in
one `shard_map`: params, state and every CG vector are replicated, the batch is split
on its leading axis, but for the entries that are said to be replicated. The input
reduction needs some rows of all devices on each: `gather` brings them there, and
`share` is its inverse.

A vector that the method makes of the params' (a gradient, a direction, all that CG
holds) may be shared out instead, each device having 1/P of it: then

    spread(v)     before multiplying: this device's own copy of the whole, one
                  all-gather, and
    collect(sums) after: the sum over devices as a vector, one reduce-scatter,

with a ⟨u, v⟩ that sums over devices. Together they send what an all-reduce does.

The devices may belong to many processes; each process runs this same program.
"""

import contextlib
import os
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from hfdist.batches import check_shares, is_replicated
from hfdist.errors import UsageError
from hfdist.pytree import inner, widen

AXIS = "data"
# Shards are of a length that any usual number of devices divides, so that a state does
# not depend on it: 2¹⁰ · 3² · 5.
MULTIPLE = 46_080
# Whether JAX checks, while tracing, which values differ between devices. That finds a
# forgotten all-reduce, and so the tests switch it on; but it refuses a predict with a
# loop that starts from a constant, as every recurrent network's does.
CHECK_VMA = False


Sharding = Literal["replicated", "vectors"]


class Shard(NamedTuple):
    """A vector like the params, shared out over the devices: flat, padded by zeros."""

    part: Any  # (n / P,) of a device inside of `data_parallel`; outside (n,), of all


class Vectors(NamedTuple):
    """How a method's vectors are held; `like` is what they are like, the params."""

    spread: Callable[[Any, Any], Any]  # vector, like -> per-device tree
    collect: Callable[[Any, Any], Any]  # per-device sums, scalars -> vector, scalars
    part: Callable[[Any], Any]  # replicated tree -> vector
    expand: Callable[[Any, Any], Any]  # vector, like -> replicated tree
    inner: Callable[[Any, Any], Any]  # ⟨u, v⟩, replicated
    shared: bool = False  # each device has a part of them


class Collectives(NamedTuple):
    """The functions through which the mathematics meets other devices."""

    vary: Callable[[Any], Any]  # replicated tree -> per-device tree
    reduce: Callable[[Any], Any]  # per-device sums -> their sum, replicated
    gather: Callable[[Any], Any]  # per-device rows -> those of all, replicated
    share: Callable[[Any], Any]  # those of all devices -> this device's
    vectors: Vectors
    size: int = 1  # number of devices
    replicated: Collection[str] = ()  # entries of a batch that each device has whole
    micro_batch_size: int | None = None  # examples of a device at a time; None: all

    @property
    def with_whole_vectors(self) -> "Collectives":
        """The same, each device having every vector whole."""
        return self._replace(vectors=_whole(self.vary, self.reduce))


def collectives(
    mesh: Mesh | None,
    replicated: Collection[str] = (),
    micro_batch_size: int | None = None,
    sharding: Sharding = "replicated",
) -> Collectives:
    """The functions inside `data_parallel(…, mesh)`; without a mesh they do nothing.

    Raises UsageError for vectors that so many devices cannot share.
    """
    if mesh is None and micro_batch_size is None:
        return ONE_DEVICE
    if mesh is None:
        return ONE_DEVICE._replace(
            replicated=replicated, micro_batch_size=micro_batch_size
        )

    if sharding == "vectors" and MULTIPLE % mesh.size:
        raise UsageError(
            f"{mesh.size} devices cannot share vectors evenly: use a number of them "
            f"that divides {MULTIPLE:,}, or sharding='replicated'"
        )

    def vary(tree):
        return jax.lax.pcast(tree, AXIS, to="varying")

    return Collectives(
        vary=vary,
        reduce=_all_reduce,
        gather=_gather,
        share=_share,
        vectors=SHARED if sharding == "vectors" else _whole(vary, _all_reduce),
        size=mesh.size,
        replicated=replicated,
        micro_batch_size=micro_batch_size,
    )


def _same(tree: Any) -> Any:
    return tree


def _whole(vary: Callable, reduce: Callable) -> Vectors:
    return Vectors(
        spread=lambda vector, like: vary(vector),
        collect=lambda sums, scalars: reduce((sums, scalars)),
        part=_same,
        expand=lambda vector, like: vector,
        inner=inner,
    )


ONE_DEVICE = Collectives(_same, _same, _same, _same, _whole(_same, _same))


def _all_reduce(tree: Any) -> Any:
    """One buffer, whatever the number of leaves: each would pay the latency again.

    Leaves of several dtypes are summed in the widest of them.
    """
    flat, unravel = ravel_pytree(tree)
    with jax.named_scope("all_reduce"):
        return unravel(jax.lax.psum(flat, AXIS))


def _gather(tree: Any) -> Any:
    return jax.lax.all_gather(tree, AXIS, tiled=True, to="invarying")


def _share(array: Any) -> Any:
    size = len(array) // jax.lax.axis_size(AXIS)
    return jax.lax.dynamic_slice_in_dim(array, jax.lax.axis_index(AXIS) * size, size)


def _spread(vector: Shard, like: Any) -> Any:
    whole = jax.lax.all_gather(vector.part, AXIS, tiled=True)
    return _unflat(whole, like)


def _collect(sums: Any, scalars: Any) -> tuple[Shard, Any]:
    part = jax.lax.psum_scatter(_flat(sums), AXIS, tiled=True)
    return Shard(part), _all_reduce(scalars) if jax.tree.leaves(scalars) else scalars


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
    part=lambda tree: Shard(_share(_flat(tree))),
    expand=lambda vector, like: _unflat(_gather(vector.part), like),
    inner=lambda u, v: jax.lax.psum(inner(u, v), AXIS),
    shared=True,
)


@partial(jax.jit, static_argnames="mesh")
def share_out(tree: Any, mesh: Mesh | None) -> Shard:
    """A tree of one dtype, whole on every device, as a shard on each."""
    return Shard(_placed(_flat(tree), mesh, P(AXIS)))


@partial(jax.jit, static_argnames="mesh")
def bring_together(vector: Shard, like: Any, mesh: Mesh | None) -> Any:
    """The tree of a shared vector, whole on every device."""
    return _unflat(_placed(vector.part, mesh, P()), like)


def _placed(array: Any, mesh: Mesh | None, spec: P) -> Any:
    if mesh is None:
        return array
    place = jax.reshard if _explicit(array) else jax.lax.with_sharding_constraint
    return place(array, NamedSharding(mesh, spec))


def data_parallel(
    step: Callable, mesh: Mesh | None, replicated: Collection[str] = ()
) -> Callable:
    """step(gradient, state, params, *batches) -> replicated results, over the devices.

    With shards in the state, the results are (update, state) and have them too. A batch
    may be None. Raises UsageError, while tracing, for an entry of a batch that the
    devices cannot share: one without a row for each example, or rows that they cannot
    split evenly.
    """
    if mesh is None:
        return step
    if mesh.axis_names != (AXIS,):
        raise UsageError(
            f"hfdist splits the batch over one mesh axis named '{AXIS}', but this mesh "
            f"has {mesh.axis_names}: build it with hfdist.make_mesh(devices)"
        )

    automatic = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,))

    def sharded(gradient, state, params, *batches):
        for batch in batches:
            if batch is not None:
                check_shares(batch, mesh.size, replicated)
        arguments = gradient, state, params, *batches
        whole = specs_of((gradient, state, params))
        shares = jax.tree_util.tree_map_with_path(
            # The first key of a path is the place among the batches.
            lambda path, _: P() if is_replicated(path[1:], replicated) else P(AXIS),
            batches,
        )
        specs = *whole, *shares
        explicit = _explicit(arguments)
        if explicit:  # where nothing is resharded unless asked for
            shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
            arguments = jax.reshard(arguments, shardings)
        mapped = jax.shard_map(
            step,
            mesh=mesh if explicit else automatic,
            in_specs=specs,
            out_specs=_results(whole[1]),
            check_vma=CHECK_VMA,
        )
        return mapped(*arguments)

    return sharded


def specs_of(tree: Any) -> Any:
    """Where the leaves of a state are: shards a part on each device, all else whole."""
    return jax.tree.map(
        lambda node: Shard(P(AXIS)) if isinstance(node, Shard) else P(),
        tree,
        is_leaf=lambda node: isinstance(node, Shard),
    )


def described(state: Any, mesh: Mesh | None, whole: bool = False) -> Any:
    """The arrays of a state without their values, each where the devices have it.

    If asked for, shards are whole on every device too.
    """

    def array(leaf, spec):
        place: Any = SingleDeviceSharding(jax.local_devices()[0])
        if mesh is not None:
            place = NamedSharding(mesh, P() if whole else spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return jax.tree.map(array, state, specs_of(state))


def _results(state: Any) -> Any:
    """Where (update, state) are, of a state with shards; of another all is whole."""
    specs = jax.tree.leaves(state, is_leaf=lambda spec: isinstance(spec, P))
    return (P(), state) if P(AXIS) in specs else P()


def _explicit(arguments: Any) -> bool:
    """Whether JAX holds the arguments' shardings to be part of their types."""
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(arguments)]
    meshes.append(jax.sharding.get_abstract_mesh())
    return any(AxisType.Explicit in mesh.axis_types for mesh in meshes)


def make_mesh(devices: int) -> Mesh | None:
    """A mesh over the first `devices` of every process; None for one device in all.

    On a machine with CPUs alone, that many virtual CPU devices are made, if JAX has
    not been used yet in this process. Raises UsageError for a count that is not there.
    """
    if devices > 1:
        # Virtual CPU devices that outnumber the cores starve each other's collectives
        # and XLA aborts; NPROC widens its thread pool. Read when the backend starts.
        os.environ.setdefault("NPROC", "8")
        # Once JAX runs, the devices are what they are.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", devices)
    try:
        present = jax.local_device_count()
    except (RuntimeError, AssertionError):
        raise UsageError(
            f"JAX finds no device of JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')}: "
            f"unset it, or install JAX's plugin for these"
        ) from None
    if devices > present:
        raise UsageError(
            f"--devices {devices}, but this machine has {present} "
            f"{jax.default_backend()} device(s): ask for at most {present}"
        )
    # In the order of the processes, so that each holds adjacent rows of a batch.
    chosen = [
        device
        for process in range(jax.process_count())
        for device in jax.local_devices(process)[:devices]
    ]
    if len(chosen) == 1:
        return None
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def local_rows(batch_size: int, mesh: Mesh | None) -> slice:
    """The rows of a global batch that this process's devices hold."""
    if mesh is None:
        return slice(0, batch_size)
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def place_chunk(chunk: Any, mesh: Mesh | None) -> Any:
    """Put a chunk of batches on the devices, split along B: leaves (steps, B, …).

    The chunk holds this process's `local_rows` of B.
    """
    return _place(chunk, mesh, P(None, AXIS))


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Put a tree, the same in every process, on the devices: whole on each."""
    return _place(tree, mesh, P())


def _place(tree: Any, mesh: Mesh | None, spec: P) -> Any:
    if mesh is None:
        return jax.device_put(tree)
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(
        lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), tree
    )
