"""A run killed at random instants and continued, against one that never was.

Both run with XLA's deterministic operations. Without them XLA may choose a GPU's
kernels by a stopwatch, differently in each process that compiles; whether that shows is
tried last, by two runs without the flag and without a cache of programs in common.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpu_check.part import ROOT, Said, Work
from toolkit.recorded import Story, provenance, story

FLAG = "--xla_gpu_deterministic_ops=true"
KILLS, STEPS = 10, 1001
QUICK_KILLS, QUICK_STEPS = 2, 210
SEED = 0
CONFIG = ROOT / "configs" / "paper" / "hf_gauss_newton.py"
# State beside the params to bring back, and a save at every dispatch: most of a run's
# time, so that many a kill is in one.
SETTINGS = (
    *("--method.damping-rule", "levenberg_marquardt", "--method.warm-start", "0.9"),
    *("--steps-per-dispatch", "7", "--checkpoint-steps", "7"),
    *("--checkpoint-minutes", "1e9"),
)


def measure(work: Work) -> Said:
    """A row for the whole run, one for the killed one, and two without the flag."""
    steps = QUICK_STEPS if work.quick else STEPS
    began = time.monotonic()
    whole = finished(work.folder / "whole", steps)
    seconds = time.monotonic() - began
    yield {"run": "never killed", "steps": whole.step, "seconds": seconds}

    killed = work.folder / "killed"
    began, count = time.monotonic(), 0
    planned = targets(QUICK_KILLS if work.quick else KILLS, steps)
    for target in planned:
        if work.deadline - time.monotonic() > 2 * seconds:
            count += kill_after(target, killed, steps)
    same = finished(killed, steps) == whole
    name = f"killed {count} of {len(planned)} times"
    row = {"run": name, "steps": whole.step}
    row |= {"seconds": time.monotonic() - began, "bit for bit": same}
    yield row | {"ok": same and count > 0}

    if provenance(killed)["device"]["platform"] == "cpu":
        return
    if work.deadline - time.monotonic() > 2.5 * seconds:
        one, other = (
            finished(work.folder / name, steps, flag="", cache=name)
            for name in ("one", "other")
        )
        yield {"run": "twice without the flag", "bit for bit": one == other}
    yield f"With XLA_FLAGS={FLAG}, where it is not said otherwise."


def targets(kills: int, steps: int) -> list[tuple[int, float]]:
    """Instants, as the steps that the run has made and the seconds after that."""
    rng = random.Random(SEED)
    made = sorted(rng.sample(range(steps), kills))
    return [(step, rng.uniform(0, 0.1)) for step in made]


def kill_after(target: tuple[int, float], run_dir: Path, steps: int) -> bool:
    """Kill the run once it is there; False if it had ended before.

    Raises RuntimeError if it ended in another way than by being done.
    """
    process = start(run_dir, steps)
    step, pause = target
    while steps_made(run_dir) <= step and process.poll() is None:
        time.sleep(0.01)
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    code = process.wait()
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a run that was to be killed ended with exit code {code}")
    return code != 0


def finished(
    run_dir: Path, steps: int, flag: str = FLAG, cache: str = "common"
) -> Story:
    """The story of a run that is made, or continued, to its end.

    Raises RuntimeError if it does not get there.
    """
    code = start(run_dir, steps, flag, cache).wait()
    if code:
        raise RuntimeError(f"a run of {steps} steps ended with exit code {code}")
    return story(run_dir)


def start(
    run_dir: Path, steps: int, flag: str = FLAG, cache: str = "common"
) -> subprocess.Popen:
    """The run in a process."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "hfdist", "train", CONFIG, *SETTINGS),
            *("--max-steps", str(steps), "--run-dir", run_dir),
            *("--compilation-cache", run_dir.with_name(f"cache-{cache}")),
        ],
        env=os.environ | {"XLA_FLAGS": flags},
    )


def steps_made(run_dir: Path) -> int:
    """The steps whose lines are written."""
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b'"split": "train"') if path.exists() else 0
