"""What the benchmarks report, figures beside their limits, and how they take them."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax

import hfdist
from hfdist.runs import metrics
from hfdist.runs.config import Config
from hfdist.runs.progress import print_table
from hfdist.runs.recorder import Result
from hfdist.runs.train import train

# Hidden layers of the autoencoder of the Hessian-free literature.
AUTOENCODER = (1000, 500, 250, 30, 250, 500, 1000)


class Measurement(NamedTuple):
    """One figure: a ratio, or what it was made of (then without a limit)."""

    name: str
    value: float
    limit: float | None
    unit: str

    @property
    def kept(self) -> bool:
        """Whether the value is within its limit."""
        return self.limit is None or self.value <= self.limit


def seconds_each(function: Callable, *args: Any, repeats: int) -> list[float]:
    """Seconds of each of several calls, waited for."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - began)
    return times


def trained(config: Config, run_dir: Path) -> Result:
    """A run into a folder; what it shows goes to stderr, as stdout is for figures."""
    with redirect_stdout(sys.stderr):
        return train(replace(config, run_dir=run_dir))


def epoch_seconds(method: hfdist.Method, epochs: int) -> list[float]:
    """Seconds of each epoch of a run on MNIST as the command line makes it."""
    with tempfile.TemporaryDirectory() as folder:
        trained(Config(method=method, epochs=epochs), Path(folder))
        lines = metrics.read(Path(folder))
    ends = [line["seconds"] for line in lines if line["split"] == "test"]
    return [end - begin for begin, end in pairwise([0.0, *ends])]


def print_measurements(measurements: Sequence[Measurement]) -> None:
    """A table for people, titled with where it was measured."""
    device = jax.devices()[0]
    title = f"{device.device_kind}, {os.cpu_count()} cores, jax {jax.__version__}"
    header = ("measured", "value", "limit", "unit", "")
    print_table(map(_row, measurements), header, title, justify="right")


def _row(m: Measurement) -> tuple[str, ...]:
    if m.limit is None:
        return m.name, f"{m.value:.4g}", "", m.unit, ""
    verdict = "ok" if m.kept else "MISSED"
    return m.name, f"{m.value:.4g}", f"{m.limit:.3g}", m.unit, verdict
