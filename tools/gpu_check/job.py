"""The parts one after the other, and the record of them."""

import argparse
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from gpu_check import process, record
from gpu_check.budget import SECONDS, share
from gpu_check.page import facts, summary
from gpu_check.part import ROOT
from hfdist.checks import check_choice
from hfdist.errors import UsageError
from hfdist.runs.progress import print_table
from toolkit import command_line

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """The command line of tools/gpu.py."""
    parser = command_line.parser("Check this machine's GPUs, or its CPU.")
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/gpu"), metavar="DIR")
    add("--minutes", type=float, default=8.0, help="for all parts together; 8")
    add("--again", default="", metavar="PART,PART", help="parts to do anew")
    add("--quick", action="store_true", help="small sizes, to try the command itself")
    add("--commit", help="of a copy without git")
    arguments = parser.parse_args()
    shown = partial(show, out=arguments.out)
    return command_line.run("gpu", arguments, report, shown, code)


def report(arguments: argparse.Namespace) -> dict[str, Any]:
    """What gpu.json holds after the parts that were missing or failed."""
    if not 0 < arguments.minutes < math.inf:
        raise UsageError(f"--minutes is {arguments.minutes:g}: use a number above 0")
    again = arguments.again.split(",") if arguments.again else []
    for name in again:
        check_choice("--again", name, tuple(SECONDS))
    deadline = time.monotonic() + 60 * arguments.minutes
    out, now = arguments.out.resolve(), arguments.commit or commit()
    known = record.read(out, arguments.quick)
    parts = known["parts"]
    with stoppable(), scratch(out) as folder:
        waiting = record.due(known, again)
        for i, name in enumerate(waiting):
            left = deadline - time.monotonic()
            outcome = run(waiting[i:], left, folder / name, arguments.quick)
            if name == "environment":
                check_device(outcome)
                record.check_same(out, parts.get(name), outcome)
            parts[name] = outcome | {"commit": now}
            record.write(out, known)
    return known


def run(
    waiting: Sequence[str], left: float, folder: Path, quick: bool
) -> dict[str, Any]:
    """The outcome of the first of the parts that wait, said on stderr too."""
    name, seconds = waiting[0], share(waiting, left)
    if seconds is None:
        outcome = process.not_run()
    else:
        folder.mkdir()
        log = folder.parent.parent / record.LOG
        outcome = process.run(name, seconds, folder, log, quick)
        shutil.rmtree(folder, ignore_errors=True)
    end = f", {outcome['why']}" if outcome["why"] else ""
    print(f"{name}: {outcome['verdict']}{end}", file=sys.stderr, flush=True)
    return outcome


def check_device(environment: dict[str, Any]) -> None:
    """Raise UsageError where JAX passes over a GPU that is there.

    The minutes of the machine would go into a check of its CPU.
    """
    known = facts(environment)
    unasked = "JAX_PLATFORMS" not in known
    if known.get("platform") == "cpu" and "nvidia-smi" in known and unasked:
        raise UsageError(
            "nvidia-smi shows a GPU, but JAX sees none: install JAX's CUDA plugin "
            "(requirements-cuda13.lock), or set JAX_PLATFORMS=cpu to check the CPU"
        )


@contextmanager
def scratch(out: Path) -> Iterator[Path]:
    """A folder in `out` for the time of a block."""
    folder = out / "work"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UsageError(
            f"{out} cannot be written ({error.strerror}): give another --out"
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let a signal raise Stopped, so that what was started is ended on the way out."""

    def stop(number, frame):
        del frame
        name = signal.Signals(number).name
        raise command_line.Stopped(f"{name}: the same command goes on")

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def commit() -> str:
    """The commit of this checkout, with "-dirty" for local changes."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def code(known: dict[str, Any]) -> int:
    """Exit code 1 unless every part passed or is not for this machine."""
    return int(not all(map(record.settled, known["parts"].values())))


def show(known: dict[str, Any], out: Path) -> None:
    """A table for people."""
    header = ("part", "verdict", "seconds", "why")
    print_table(summary(known["parts"]), header)
    print(f"Written: {out / record.JSON}, {out / record.PAGE}")
