"""Real processes that meet by what their environments say."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOT_A_USERS = ("JAX_ENABLE_X64", "XLA_FLAGS")  # settings of conftest.py


def clean_environment():
    """This one, without what the tests or a SLURM around them have set."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in NOT_A_USERS and not name.startswith("SLURM_")
    }


def free_port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def start(*command, **env):
    """A process of ours, in a session of its own, whose output is one text."""
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=clean_environment() | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(reached, seconds=60):
    """Go on when something has come about, within so many seconds."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


@contextlib.contextmanager
def small_disk(folder, kilobytes):
    """A disk of so many kilobytes in a folder."""
    folder.mkdir()
    size = f"size={kilobytes}k"
    mount = ["mount", "-t", "tmpfs", "-o", size, "none", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def run_together(environments, *arguments):
    """(exit code, output) of hfdist in a process for each environment."""
    processes = [
        start(sys.executable, "-m", "hfdist", *arguments, **environment)
        for environment in environments
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, out) for p, out in zip(processes, outputs, strict=True)]


def children_of(process):
    """The process ids of a process's children, in the order of their start."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def train_losses(run_dir):
    """The loss of every step in a run's metrics."""
    text = (run_dir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [line["loss"] for line in lines if line["split"] == "train"]
