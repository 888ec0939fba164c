"""The all-reduce of training over the devices of this machine, against its model."""

import statistics
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measurement import seconds_each
from communication.cost import Link, ring_seconds, rounds
from gpu_check.part import Said, Skipped, Work
from hfdist.parallel import collectives, data_parallel, make_mesh

KIND = "all-reduce"
SIZES = tuple(10**k for k in range(2, 9))  # float32 numbers
FEW = 3  # of them in a quick run
LOOP, REPEATS = 20, 5


def measure(work: Work) -> Said:
    """Seconds of a sum of N numbers, and those of the ring that fits all of them.

    Raises Skipped on one device.
    """
    devices = jax.device_count()
    if devices == 1:
        raise Skipped("one device")
    points = []
    for size in SIZES[:FEW] if work.quick else SIZES:
        seconds, right = all_reduce(size, devices)
        points.append((4 * size, seconds))
        yield {"floats": size, "measured ms": 1e3 * seconds, "ok": right}
    link = fitted(points, devices)
    for nbytes, seconds in points:
        model = ring_seconds(KIND, nbytes, devices, link)
        yield {
            "floats": nbytes // 4,
            "ring ms": 1e3 * model,
            "measured / ring": seconds / model,
        }
    yield (
        f"The ring that fits these best over {devices} devices: "
        f"{link.bandwidth / 1e9:.3g} GB/s and {1e6 * link.latency:.3g} µs."
    )


def all_reduce(size: int, devices: int) -> tuple[float, bool]:
    """Seconds of one sum over the devices, and whether it is right.

    In a loop inside one program, so that dispatch counts little; each sum is of the
    mean before it, which is 1 throughout.
    """
    mesh = make_mesh(devices)
    over = collectives(mesh)

    def means(gradient, state, x):
        del gradient, state

        def mean(_, x):
            return over.reduce(over.vary(x)) / devices

        return jax.lax.fori_loop(0, LOOP, mean, x)

    run = jax.jit(lambda x: data_parallel(means, mesh)(None, None, x))
    x = jnp.ones(size, "float32")
    right = bool(jnp.all(run(x) == 1))
    return statistics.median(seconds_each(run, x, repeats=REPEATS)) / LOOP, right


def fitted(points: Sequence[tuple[int, float]], devices: int) -> Link:
    """The link whose ring has the least relative errors at (bytes, seconds)."""
    nbytes, seconds = np.array(points, float).T
    each = rounds(KIND, devices)
    terms = np.stack([each * np.ones_like(nbytes), each * nbytes / devices], axis=1)
    terms, ones = terms / seconds[:, None], np.ones(len(seconds))
    (latency, per_byte), *_ = np.linalg.lstsq(terms, ones)
    return Link(1 / max(per_byte, 1e-15), max(latency, 0.0))
