"""What the benchmarks report: figures beside the limits that they should keep."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from hfdist.runs.progress import print_table


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
