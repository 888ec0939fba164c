"""Where this is: devices, driver, versions, memory."""

import os
import platform
import subprocess
from importlib.metadata import version

import jax
import jax.numpy as jnp
from jax.extend.backend import get_backend

from gpu_check.part import Row, Said, Work
from hfdist.memory import device_memory, host_memory
from toolkit.machine import machine

PACKAGES = ("flax", "optax", "orbax-checkpoint", "grain", "tyro", "numpy")
VARIABLES = (
    *("JAX_PLATFORMS", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES"),
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
)
SIDE = 512


def measure(work: Work) -> Said:
    """What the driver says first: JAX may hang where a GPU is not well."""
    del work
    for line in _nvidia_smi("-L"):
        yield _row("nvidia-smi", line)
    for line in _nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader")[:1]:
        yield _row("driver", line)
    yield _row("python", platform.python_version())
    for name in ("jax", "jaxlib", *PACKAGES):
        yield _row(name, version(name))
    for name in VARIABLES:
        if name in os.environ:
            yield _row(name, os.environ[name])
    device = jax.devices()[0]
    yield _row("platform", device.platform)
    yield _row("device", device.device_kind)
    yield _row("devices", jax.device_count())
    kind = {"platform": device.platform, "kind": device.device_kind}
    yield _row("machine", machine(kind))
    yield _row("backend", get_backend().platform_version)
    yield _row("device memory, GB", device_memory() / 1e9)
    yield _row("host memory, GB", host_memory() / 1e9)
    yield _row("cores", os.cpu_count())
    ones = jnp.ones((SIDE, SIDE))
    corner = float((ones @ ones)[0, 0])
    yield _row("a product of ones", corner) | {"ok": corner == SIDE}


def _row(what: str, value: object) -> Row:
    return {"what": what, "value": value}


def _nvidia_smi(*arguments: str) -> list[str]:
    """The lines that it prints; none where there is none."""
    try:
        done = subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []
