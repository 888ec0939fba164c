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
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence

GRACE = 5.0  # seconds between asking the others to end and killing them
FINAL = {0, 2, 3, 75}  # done, a caller's mistake, diverged, stopped: not to be repeated
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
MOST = 1024  # processes

signals: list[int] = []  # somebody wants the run to end
writing = threading.Lock()


def launch(command: Sequence[str], processes: int, port: int, gpus: list[str]) -> int:
    """Run the command in each of the processes; the exit code of the first failure."""
    children: list[subprocess.Popen] = []
    forward_signals(children)
    try:
        readers = start_all(children, command, processes, port, gpus)
    except (OSError, RuntimeError) as error:  # of a process, or of a thread
        send(children, signal.SIGKILL)
        for child in children:
            child.wait()
        print(
            f"launch/local.py: {processes} processes cannot be started ({error}): use "
            f"fewer, or allow more (ulimit -u, ulimit -n)",
            file=sys.stderr,
        )
        return 2
    for number in signals:  # some children have not had it
        send(children, number)
    code = wait(children)
    for reader in readers:
        reader.join()
    return code


def forward_signals(children: Sequence[subprocess.Popen]) -> None:
    """From now on pass signals on to the children, who are started later."""

    def forward(number, _):
        signals.append(number)
        send(children, number)

    for number in FORWARDED:
        # Under nohup it stays ignored, by the children too.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward)


def start_all(
    children: list[subprocess.Popen],
    command: Sequence[str],
    processes: int,
    port: int,
    gpus: list[str],
) -> list[threading.Thread]:
    """Start the processes, adding them to the children; who copies their output."""
    cores = [] if gpus else sorted(os.sched_getaffinity(0))
    readers = []
    for index in range(processes):
        env = environment(index, processes, port)
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(share(gpus, index, processes))
        children.append(start(command, env))
        if mine := share(cores, index, processes):
            bind(children[-1].pid, mine)
        reader = threading.Thread(target=copy, args=(children[-1].stdout, index))
        reader.start()
        readers.append(reader)
    return readers


def environment(index: int, processes: int, port: int) -> dict[str, str]:
    """The environment of one process."""
    env = {
        **os.environ,
        "HFDIST_COORDINATOR": f"localhost:{port}",
        "HFDIST_NUM_PROCESSES": str(processes),
        "HFDIST_PROCESS_ID": str(index),
        "PYTHONUNBUFFERED": "1",
    }
    env.pop("HFDIST_BIND_ADDRESS", None)  # no other machine has to reach process 0
    return env


def start(command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen:
    """One process; it leads a session of its own, so that Ctrl-C reaches it once."""
    return subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def bind(pid: int, cores: Collection[int]) -> None:
    """Let a process run on these cores, and as batch work."""
    with contextlib.suppress(OSError):  # it has ended, or a container forbids it
        os.sched_setaffinity(pid, cores)
        # gloo's thread spins while the computing thread holds its lock. As batch work,
        # neither preempts the other: an all-reduce of a few bytes over one core each
        # takes 0.1 ms and not a scheduler tick, 4 ms.
        os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))


def wait(children: Sequence[subprocess.Popen]) -> int:
    """Wait for all; when one fails, end the others."""
    code, deadline = 0, None
    while running := [child for child in children if child.poll() is None]:
        time.sleep(0.05)
        for index, child in enumerate(children):
            if code or not child.poll():
                continue
            code = exit_code(child.returncode)
            show(f"launch: process {index} ended with {described(code)}\n".encode())
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
        show(b"[%d] " % index + line)


def show(line: bytes) -> None:
    """Write to standard output if it can be written; the run goes on if not."""
    # Not through sys.stdout, which fails once more at exit for what it still holds.
    with writing, contextlib.suppress(OSError):
        while line:
            line = line[os.write(1, line) :]


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


def whole(least: int, most: int) -> Callable[[str], int]:
    """A type of argument: a whole number within bounds."""

    def number(text: str) -> int:
        if re.fullmatch("[0-9]{1,9}", text) and least <= int(text) <= most:
            return int(text)
        raise argparse.ArgumentTypeError(
            f"{text!r} is no whole number from {least} to {most}"
        )

    return number


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        description="Run hfdist in several processes on this machine.",
        usage="%(prog)s --processes N [--port PORT] [--max-restarts N] -- "
        "train CONFIG.py ...",
    )
    parser.add_argument("--processes", type=whole(1, MOST), required=True)
    parser.add_argument(
        "--port", type=whole(1, 65535), help="of process 0; a free one by default"
    )
    parser.add_argument("--max-restarts", type=whole(0, 10**6), default=0)
    parser.add_argument("arguments", nargs="+", metavar="train CONFIG.py ...")
    arguments = parser.parse_args()
    named = [argument.partition("=")[0] for argument in arguments.arguments]
    if arguments.max_restarts and "--run-dir" not in named:
        parser.error("--max-restarts needs a --run-dir to continue in")
    gpus, processes = visible_gpus(), arguments.processes
    if gpus and len(gpus) < processes:
        parser.error(
            f"{processes} processes, but this machine has {len(gpus)} GPU(s): ask for "
            f"at most {len(gpus)}, or set CUDA_VISIBLE_DEVICES= to run on the CPU"
        )
    command = [sys.executable, "-m", "hfdist", *arguments.arguments]
    for left in reversed(range(arguments.max_restarts + 1)):
        code = launch(command, processes, arguments.port or free_port(), gpus)
        if code in FINAL or signals or not left:
            return code
        show(f"launch: starting again, {left - 1} restarts left\n".encode())
    raise AssertionError("unreachable")


if __name__ == "__main__":
    sys.exit(main())
