"""Where a process stands among those of its run, as its environment says."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from hfdist.errors import UsageError

EXPLICIT = ("HFDIST_COORDINATOR", "HFDIST_NUM_PROCESSES", "HFDIST_PROCESS_ID")
SLURM = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")


class Place(NamedTuple):
    """One process of several."""

    coordinator: str  # host:port of process 0
    processes: int
    process: int  # this one, from 0


def find_place(env: Mapping[str, str]) -> Place | None:
    """The place that the environment names; None for a run of one process.

    Explicit variables come first, then those of a SLURM step. An Indexed Kubernetes
    Job numbers its pods itself, so that the first two explicit ones are enough there.
    Raises UsageError for variables that do not fit together.
    """
    if any(name in env for name in EXPLICIT):
        values = [env.get(name, "") for name in EXPLICIT]
        values[2] = values[2] or env.get("JOB_COMPLETION_INDEX", "")
        if missing := [n for n, v in zip(EXPLICIT, values, strict=True) if not v]:
            raise UsageError(f"{', '.join(missing)} is not set: set all of {EXPLICIT}")
        return _checked(*values)
    # A shell inside an allocation has some of them, or is a step of one task.
    if not all(f"SLURM_{name}" in env for name in SLURM):
        return None
    tasks = env.get("SLURM_STEP_NUM_TASKS", env["SLURM_NTASKS"])
    # Above Linux's ephemeral ports; another for each job and step on a node.
    number = int(env["SLURM_JOB_ID"]) + 97 * int(env.get("SLURM_STEP_ID", 0))
    host = _first_host(env["SLURM_STEP_NODELIST"])
    return _checked(f"{host}:{61440 + number % 4096}", tasks, env["SLURM_PROCID"])


def _first_host(nodes: str) -> str:
    """The first of node[03-05,9],login1: node03."""
    found = re.match(r"([^\[,]+)(?:\[([0-9]+)[^\]]*\]([^,]*))?", nodes)
    if found is None:
        raise UsageError(f"SLURM_STEP_NODELIST is {nodes!r}, which names no host")
    return "".join(part or "" for part in found.groups())


def _checked(coordinator: str, processes: str, process: str) -> Place | None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(
            f"the coordinator is {coordinator!r}: give HOST:PORT of process 0, with a "
            f"port that is free there"
        )
    total, number = (int(s) if s.isdecimal() else -1 for s in (processes, process))
    if not 0 <= number < total:
        raise UsageError(
            f"this is process {process} of {processes}: number them from 0 to one less "
            f"than their count, each once"
        )
    return Place(coordinator, total, number) if total > 1 else None
