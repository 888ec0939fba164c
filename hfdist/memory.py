"""How much memory there is, and whether it is enough."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import jax

from hfdist.errors import UsageError

GROUPS, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def host_memory() -> int:
    """Bytes of memory of this machine, or fewer if this process may not have them."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_group_limits()])


def _group_limits() -> Iterator[int]:
    """The limits of this process's control group and of those that it is in.

    A line of GROUPS is number:controllers:path, without controllers in version 2.
    """
    for line in GROUPS.read_text().splitlines() if GROUPS.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder, name = MOUNT, "memory.max"
        elif "memory" in controllers.split(","):
            folder, name = MOUNT / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = PurePosixPath(path).relative_to("/")
        for above in (group, *group.parents):
            # A container may see its own group alone, as the root; "max" is no limit.
            with suppress(OSError, ValueError):
                yield int((folder / above / name).read_text())


def device_memory() -> int:
    """Bytes of memory of the first device; for a CPU, what this process may have."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    return host_memory()


def check_device_memory(needed: int, what: str, remedy: str) -> None:
    """Raise UsageError where the device has fewer bytes: "WHAT 9.0 GB …: REMEDY"."""
    available = device_memory()
    if needed > available:
        raise UsageError(
            f"{what} about {needed / 1e9:,.1f} GB and this device has "
            f"{available / 1e9:,.1f} GB: {remedy}"
        )
