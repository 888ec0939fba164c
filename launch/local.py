"""Run hfdist in several processes on this machine.

    python launch/local.py --processes 2 -- train configs/paper/hf_gauss_newton.py

GPUs, or without any the cores, are divided evenly among the processes. Each line of
output starts with its process's number. The first process to fail ends the others, and
its exit code is returned; signals are passed on to all. With --max-restarts a run that
failed is started again, and continues from its newest checkpoint.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence

GRACE = 5.0  # seconds between asking the others to end and killing them
FINAL = {0, 2, 3, 75}  # done, a caller's mistake, diverged, stopped: not to be repeated
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


signalled = threading.Event()  # somebody wants the run to end


def launch(command: Sequence[str], processes: int, port: int) -> int:
    """Run the command in each of the processes; the exit code of the first failure."""
    gpus = visible_gpus()
    if gpus and len(gpus) < processes:
        sys.exit(
            f"launch/local.py: {processes} processes, but this machine has {len(gpus)} "
            f"GPU(s): ask for at most {len(gpus)}, or set CUDA_VISIBLE_DEVICES= to "
            f"run on the CPU"
        )
    children = []
    for index in range(processes):
        env = {
            **os.environ,
            "HFDIST_COORDINATOR": f"localhost:{port}",
            "HFDIST_NUM_PROCESSES": str(processes),
            "HFDIST_PROCESS_ID": str(index),
            "PYTHONUNBUFFERED": "1",
        }
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(share(gpus, index, processes))
        cores = [] if gpus else share(sorted(os.sched_getaffinity(0)), index, processes)
        children.append(start(command, env, cores))

    def forward(number, _):
        signalled.set()
        send(children, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    readers = [
        threading.Thread(target=copy, args=(child.stdout, index))
        for index, child in enumerate(children)
    ]
    for reader in readers:
        reader.start()
    code = wait(children)
    for reader in readers:
        reader.join()
    return code


def start(
    command: Sequence[str], env: Mapping[str, str], cores: Collection[int]
) -> subprocess.Popen:
    """One process; it leads a session of its own, so that Ctrl-C reaches it once."""
    child = subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    if cores:
        os.sched_setaffinity(child.pid, cores)
        # gloo's thread spins while the computing thread holds its lock. As batch work,
        # neither preempts the other: an all-reduce of a few bytes over one core each
        # takes 0.1 ms and not a scheduler tick, 4 ms.
        os.sched_setscheduler(child.pid, os.SCHED_BATCH, os.sched_param(0))
    return child


def wait(children: Sequence[subprocess.Popen]) -> int:
    """Wait for all; when one fails, end the others."""
    code, deadline = 0, None
    while running := [child for child in children if child.poll() is None]:
        time.sleep(0.05)
        for index, child in enumerate(children):
            if code or not child.poll():
                continue
            code = exit_code(child.returncode)
            print(f"launch: process {index} ended with {described(code)}", flush=True)
            # They may be about to end by themselves, saying why.
            deadline = time.monotonic() + GRACE
        if deadline and time.monotonic() > deadline:
            send(running, signal.SIGKILL)
    return code or next((exit_code(c.returncode) for c in children if c.returncode), 0)


def send(children: Sequence[subprocess.Popen], number: int) -> None:
    """Send a signal to the children that still run."""
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)


def exit_code(returncode: int) -> int:
    """As a shell gives it: 128 + n after signal n."""
    return returncode if returncode >= 0 else 128 - returncode


def described(code: int) -> str:
    """An exit code in words."""
    return signal.Signals(code - 128).name if code > 128 else f"exit code {code}"


def copy(stream, index: int) -> None:
    """Copy a child's output line by line, each with its number."""
    for line in stream:
        sys.stdout.buffer.write(b"[%d] " % index + line)
        sys.stdout.buffer.flush()


def share(things: Sequence, index: int, processes: int) -> Sequence:
    """An even share; empty if there are too few."""
    each = len(things) // processes
    return things[index * each : (index + 1) * each]


def visible_gpus() -> list[str]:
    """The ids of the GPUs that CUDA may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [str(i) for i in range(listed.stdout.count("GPU "))]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        description="Run hfdist in several processes on this machine.",
        usage="%(prog)s --processes N [--port PORT] [--max-restarts N] -- "
        "train CONFIG.py ...",
    )
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--port", type=int, help="of process 0; a free one by default")
    parser.add_argument("--max-restarts", type=int, default=0)
    parser.add_argument("arguments", nargs="+", metavar="train CONFIG.py ...")
    arguments = parser.parse_args()
    if arguments.processes < 1:
        parser.error(f"--processes is {arguments.processes}: use at least 1")
    if arguments.max_restarts and "--run-dir" not in arguments.arguments:
        parser.error("--max-restarts needs a --run-dir to continue in")
    command = [sys.executable, "-m", "hfdist", *arguments.arguments]
    for left in reversed(range(arguments.max_restarts + 1)):
        code = launch(command, arguments.processes, arguments.port or free_port())
        if code in FINAL or signalled.is_set() or not left:
            return code
        print(f"launch: starting again, {left - 1} restarts left", flush=True)
    raise AssertionError("unreachable")


if __name__ == "__main__":
    sys.exit(main())
