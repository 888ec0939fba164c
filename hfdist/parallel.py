"""Data parallelism: the only file that names a mesh axis.

The mathematics is single-device code over one device's share of the batch. It calls

    vary(tree)    before differentiating: makes replicated params (or a CG vector) this
                  device's own, so that no derivative sums over devices by itself, and
    reduce(tree)  after: the sum over devices of local sums, one all-reduce.

On one device both are the identity. `data_parallel` wraps a whole optimiser update in
one `shard_map`: params, state and every CG vector are replicated, the batch is split
on its leading axis.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hfdist.errors import UsageError

AXIS = "data"


class Collectives(NamedTuple):
    """The two functions through which the mathematics meets other devices."""

    vary: Callable[[Any], Any]  # replicated tree -> per-device tree
    reduce: Callable[[Any], Any]  # per-device sums -> their sum, replicated


def collectives(mesh: Mesh | None) -> Collectives:
    """`vary` and `reduce` inside `data_parallel(…, mesh)`."""
    if mesh is None:
        return Collectives(vary=lambda tree: tree, reduce=lambda tree: tree)
    return Collectives(
        vary=lambda tree: jax.lax.pcast(tree, AXIS, to="varying"),
        reduce=lambda tree: jax.lax.psum(tree, AXIS),
    )


def data_parallel(step: Callable, mesh: Mesh | None) -> Callable:
    """step(gradient, state, params, batch) -> replicated results, over mesh's devices.

    Raises ValueError, while tracing, for a batch that the devices cannot share evenly.
    """
    if mesh is None:
        return step
    if mesh.axis_names != (AXIS,):
        raise UsageError(
            f"hfdist splits the batch over one mesh axis named '{AXIS}', but this mesh "
            f"has {mesh.axis_names}: build it with hfdist.make_mesh(devices)"
        )
    sharded = jax.shard_map(
        step, mesh=mesh, in_specs=(P(), P(), P(), P(AXIS)), out_specs=P()
    )

    def checked(gradient, state, params, batch):
        for name, array in batch.items():
            if array.shape[0] % mesh.size:
                raise UsageError(
                    f"batch['{name}'] has {array.shape[0]} examples, which {mesh.size} "
                    f"devices cannot share evenly: pad it with examples of weight 0"
                )
        return sharded(gradient, state, params, batch)

    return checked


def make_mesh(devices: int) -> Mesh | None:
    """A mesh over the first `devices` local devices; None for one, which needs none.

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
    present = jax.device_count()
    if devices > present:
        raise UsageError(
            f"--devices {devices}, but this machine has {present} "
            f"{jax.default_backend()} device(s): ask for at most {present}"
        )
    if devices == 1:
        return None
    return jax.make_mesh(
        (devices,), (AXIS,), (AxisType.Auto,), devices=jax.devices()[:devices]
    )


def place_chunk(chunk: Any, mesh: Mesh | None) -> Any:
    """Put a chunk of batches, leaves (steps, B, …), on the devices, split along B."""
    sharding = None if mesh is None else NamedSharding(mesh, P(None, AXIS))
    return jax.device_put(chunk, sharding)


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Put a tree on the devices, whole on each."""
    sharding = None if mesh is None else NamedSharding(mesh, P())
    return jax.device_put(tree, sharding)
