"""Real processes that meet by what their environments say."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

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


def run_together(environments, *arguments):
    """(exit code, output) of hfdist in a process for each environment."""
    command = [sys.executable, "-m", "hfdist", *map(str, arguments)]
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=clean_environment() | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
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
