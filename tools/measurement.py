"""What the benchmarks report: figures beside the limits that they should keep."""

import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.table import Table


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


def report(measurements: Sequence[Measurement], as_json: bool) -> None:
    """Print a table for people, or a JSON list for programs."""
    if as_json:
        print(json.dumps([m._asdict() for m in measurements]))
        return
    device = jax.devices()[0]
    table = Table(
        title=f"{device.device_kind}, {os.cpu_count()} cores, jax {jax.__version__}"
    )
    for column in ("measured", "value", "limit", "unit", ""):
        table.add_column(column, justify="left" if column == "measured" else "right")
    for m in measurements:
        limit = "" if m.limit is None else f"{m.limit:.3g}"
        verdict = "" if m.limit is None else ("ok" if m.kept else "MISSED")
        table.add_row(m.name, f"{m.value:.4g}", limit, m.unit, verdict)
    Console(soft_wrap=True).print(table)
