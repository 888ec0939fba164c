"""Data parallelism: a mesh of devices, and one program over them.

The mathematics is single-device code over one device's share of the batch. It calls

    vary(tree)    before differentiating: makes replicated params (or a CG vector) this
                  device's own, so that no derivative sums over devices by itself, and
    reduce(tree)  after: the sum over devices of local sums, one all-reduce.

On one device both are the identity. `data_parallel` wraps a whole optimiser update in
one `shard_map`: params, state and every CG vector are replicated, the batch is split
on its leading axis, but for the entries that are said to be replicated. The input
reduction needs some rows of all devices on each: `gather` brings them there, and
`share` is its inverse. Vectors, or the params with them, may be shared out instead:
sharing.py says how. Only it and this file name the mesh axis. Over others, which a
caller's mesh may have to split the params of a network, the program is XLA's to split.

The devices may belong to many processes; each process runs this same program.
"""

import contextlib
import os
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hfdist.batches import check_shares, is_replicated
from hfdist.errors import UsageError
from hfdist.pytree import inner, same
from hfdist.sharing import (
    AXIS,
    MULTIPLE,
    SHARED,
    Sharding,
    Vectors,
    all_reduce,
    axes_of,
    explicit,
    gather,
    inner_of_parts,
    own_parts,
    own_whole,
    parts_of,
    share,
    specs_of,
    split_vectors,
    together,
    whole_vectors,
)

# Whether JAX checks, while tracing, which values differ between devices. That finds a
# forgotten all-reduce, and so the tests switch it on; but it refuses a predict with a
# loop that starts from a constant, as every recurrent network's does.
CHECK_VMA = False


class Collectives(NamedTuple):
    """The functions through which the mathematics meets other devices."""

    vary: Callable[[Any], Any]  # replicated tree -> per-device tree
    reduce: Callable[[Any], Any]  # per-device sums -> their sum, replicated
    gather: Callable[[Any], Any]  # per-device rows -> those of all, replicated
    share: Callable[[Any], Any]  # those of all devices -> this device's
    vectors: Vectors
    own: Callable[[Any], Any] = same  # tree held as the params are -> per-device tree
    own_whole: Callable[[Any], Any] = same  # such a tree -> per-device, whole
    whole: Callable[[Any], Any] = same  # such a tree -> whole, replicated
    parts: Callable[[Any], Any] = same  # the inverse of `whole`
    inner: Callable[[Any, Any], Any] = inner  # ⟨a, b⟩ of such trees, replicated
    size: int = 1  # number of devices
    replicated: Collection[str] = ()  # entries of a batch that each device has whole
    micro_batch_size: int | None = None  # examples of a device at a time; None: all

    def sharing_params(self, params: Any) -> "Collectives":
        """The same, each device having a part of the params, and of each vector."""
        axes = axes_of(params, self.size)
        own = partial(own_parts, axes, self.vary)
        return self._replace(
            vectors=split_vectors(axes, own),
            own=own,
            own_whole=partial(own_whole, axes),
            whole=partial(together, axes),
            parts=partial(parts_of, axes),
            inner=partial(inner_of_parts, axes),
        )


def collectives(
    mesh: Mesh | None,
    replicated: Collection[str] = (),
    micro_batch_size: int | None = None,
    sharding: Sharding = "replicated",
) -> Collectives:
    """The functions inside `data_parallel(…, mesh)`; without a mesh they do nothing.

    Params are whole in them all: `sharing_params` has the others. Raises UsageError for
    a mesh of other axes, and for vectors that so many devices cannot share.
    """
    if mesh is None and micro_batch_size is None:
        return ONE_DEVICE
    if mesh is None:
        return ONE_DEVICE._replace(
            replicated=replicated, micro_batch_size=micro_batch_size
        )

    if AXIS not in mesh.axis_names:
        raise UsageError(
            f"hfdist splits the batch over a mesh axis named '{AXIS}', but this mesh "
            f"has {mesh.axis_names}: build it with hfdist.make_mesh(devices)"
        )
    alone = mesh.axis_names == (AXIS,)
    if sharding != "replicated" and not alone:
        raise UsageError(
            f"sharding={sharding!r} is for a mesh of the one axis '{AXIS}', and this "
            f"has {mesh.axis_names}: the other axes split what the params are"
        )
    if sharding == "vectors" and MULTIPLE % mesh.size:
        raise UsageError(
            f"{mesh.size} devices cannot share vectors evenly: use a number of them "
            f"that divides {MULTIPLE:,}, or sharding='replicated'"
        )
    # One buffer of leaves that other axes split would bring them together.
    reduce = all_reduce if alone else partial(jax.lax.psum, axis_name=AXIS)
    return Collectives(
        vary=_vary,
        reduce=reduce,
        gather=gather,
        share=share,
        vectors=SHARED if sharding == "vectors" else whole_vectors(_vary, reduce),
        own=_vary,
        size=mesh.shape[AXIS],
        replicated=replicated,
        micro_batch_size=micro_batch_size,
    )


def _vary(tree: Any) -> Any:
    return jax.lax.pcast(tree, AXIS, to="varying")


ONE_DEVICE = Collectives(same, same, same, same, whole_vectors(same, same))


def data_parallel(
    step: Callable,
    mesh: Mesh | None,
    replicated: Collection[str] = (),
    places: Callable[[Any], Any] = specs_of,
) -> Callable:
    """step(gradient, state, params, *batches) -> replicated results, over the devices.

    `places` says where the leaves of (gradient, state, params) are; where a device has
    parts of some, the results are (update, state), held as params and state are. A
    batch may be None. Raises UsageError, while tracing, for an entry of a batch that
    the devices cannot share: one without a row for each example, or rows that they
    cannot split evenly.
    """
    if mesh is None:
        return step
    types = (AxisType.Auto,) * len(mesh.axis_names)
    automatic = Mesh(mesh.devices, mesh.axis_names, axis_types=types)

    def sharded(gradient, state, params, *batches):
        for batch in batches:
            if batch is not None:
                check_shares(batch, mesh.shape[AXIS], replicated)
        arguments = gradient, state, params, *batches
        held = places((gradient, state, params))
        shares = jax.tree_util.tree_map_with_path(
            # The first key of a path is the place among the batches.
            lambda path, _: P() if is_replicated(path[1:], replicated) else P(AXIS),
            batches,
        )
        specs = *held, *shares
        shown = explicit(arguments)
        if shown and mesh.axis_names != (AXIS,):
            raise UsageError(
                f"hfdist leaves the mesh axes other than '{AXIS}' to XLA, which takes "
                f"automatic ones alone: make the mesh with axis_types="
                f"(jax.sharding.AxisType.Auto,) * {len(mesh.axis_names)}"
            )
        if shown:  # where nothing is resharded unless asked for
            shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
            arguments = jax.reshard(arguments, shardings)
        mapped = jax.shard_map(
            step,
            mesh=mesh if shown else automatic,
            in_specs=specs,
            out_specs=_results(held),
            axis_names={AXIS},
            check_vma=CHECK_VMA,
        )
        return mapped(*arguments)

    return sharded


def _results(held: tuple[Any, Any, Any]) -> Any:
    """Where (update, state) are, if some of them are in parts; else all is whole."""
    _, state, params = held
    specs = jax.tree.leaves((state, params), is_leaf=lambda spec: isinstance(spec, P))
    return (params, state) if any(map(len, specs)) else P()


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


def place_rows(batch: Any, mesh: Mesh | None) -> Any:
    """Put a batch on the devices, split along its rows: this process's `local_rows`."""
    return _place(batch, mesh, P(AXIS))


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
