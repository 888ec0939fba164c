"""What saving costs: time of a run, time to restore, bytes on disk."""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import hfdist
from benchmarks.measurement import AUTOENCODER, Measurement, trained
from hfdist.models.mlp import MLP
from hfdist.runs.config import Config
from hfdist.runs.resume import restore_newest, saved_in

ROUNDS = 3
BASELINE = Config(method=hfdist.HessianFree(damping=4.0))
# The autoencoder's layers, and ten classes for the trainer to measure.
LARGE = Config(
    method=hfdist.SGD(learning_rate=0.01),
    model=MLP(hidden=AUTOENCODER),
    batch_size=512,
    epochs=2,
)


def checkpoint() -> list[Measurement]:
    """Saves after every epoch against one save at the end."""
    return [*_saving("baseline", BASELINE, 938), *_saving("2 M params", LARGE, 118)]


def _saving(name: str, config: Config, per_epoch: int) -> list[Measurement]:
    """Both kinds of run in turn; the seconds count all but compilation."""
    often = replace(config, checkpoint_steps=per_epoch, checkpoint_minutes=1e6)
    once = replace(config, checkpoint_minutes=1e6)
    with tempfile.TemporaryDirectory() as folder:
        pairs = [
            (
                _seconds(often, Path(folder) / f"often{i}"),
                _seconds(once, Path(folder) / f"once{i}"),
            )
            for i in range(ROUNDS)
        ]
        saving, alone = (statistics.median(times) for times in zip(*pairs, strict=True))
        restored, on_disk, of_state = _restore(config, Path(folder) / "once0")
    return [
        Measurement(f"{name}: run", alone, None, "s"),
        Measurement(f"{name}: saving every epoch / run", saving / alone, 1.1, "ratio"),
        Measurement(f"{name}: restore, verified", restored * 1e3, None, "ms"),
        Measurement(f"{name}: state", of_state / 1e6, None, "MB"),
        Measurement(f"{name}: disk / state", on_disk / of_state, 1.2, "ratio"),
    ]


def _seconds(config: Config, run_dir: Path) -> float:
    began = time.perf_counter()
    result = trained(config, run_dir)
    return time.perf_counter() - began - result.compile_seconds


def _restore(config: Config, run_dir: Path) -> tuple[float, int, int]:
    """Seconds to restore, bytes on disk, bytes of the arrays."""
    problem, params = config.build_problem()
    carry = params, config.method.build(problem).init(params)
    checkpoints = saved_in(run_dir)
    (step,) = checkpoints.steps()
    began = time.perf_counter()
    restore_newest(checkpoints, lambda _: carry, saved=True)
    seconds = time.perf_counter() - began
    return seconds, checkpoints.size(step), checkpoints.verify(step)
