"""The seconds of a step over many devices, from those of its parts on one.

The model is in the head of tools/comms.py.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from communication.compiled import Collective, timer
from hfdist.errors import UsageError
from hfdist.runs.config import Config
from hfdist.runs.plan import curvature_share
from hfdist.solvers.cg import CG
from hfdist.tasks.examples import Examples


class Link(NamedTuple):
    """What each device has to send to the next."""

    bandwidth: float  # bytes/s
    latency: float  # s


class Cost(NamedTuple):
    """Seconds of a step's arithmetic on one device, at the config's batch."""

    outside: float  # this and the next scale with a device's share of the batch
    per_cg_step: float
    replicated_outside: float
    replicated_per_cg_step: float


def rounds(kind: str, devices: int) -> int:
    """Messages that one collective has every device send, one after the other."""
    return (2 if kind == "all-reduce" else 1) * (devices - 1)


def ring_seconds(kind: str, nbytes: float, devices: int, link: Link) -> float:
    """Seconds of the rounds of one collective (Patarasuk & Yuan 2009)."""
    return rounds(kind, devices) * (nbytes / devices / link.bandwidth + link.latency)


def repeats(collective: Collective, cg_steps: int) -> int:
    """How often every step runs a collective."""
    if collective.branch and not collective.in_loop:
        return 0
    return collective.times * (cg_steps if collective.in_loop else 1)


def step_seconds(
    cost: Cost,
    cg_steps: int,
    collectives: Sequence[Collective],
    devices: int,
    link: Link,
    share: float = 1.0,
) -> float:
    """Seconds of a step in which each device has `share` of the cost's batch."""
    shared = cost.outside + cg_steps * cost.per_cg_step
    replicated = cost.replicated_outside + cg_steps * cost.replicated_per_cg_step
    communication = sum(
        repeats(c, cg_steps) * ring_seconds(c.kind, c.bytes, devices, link)
        for c in collectives
    )
    return replicated + share * shared + communication


def predictions(seconds: Callable[..., float], batch_size: int) -> list[dict[str, Any]]:
    """Rows of a table of step times; seconds is step_seconds of devices and share.

    The efficiency is share · seconds on one device / seconds.
    """
    one, rows = seconds(devices=1), []
    for p in (2**i for i in range(11)):
        weak, strong = seconds(devices=p), seconds(devices=p, share=1 / p)
        row = {"devices": p, "communication_ms": 1e3 * (weak - one)}
        row |= {"weak_ms": 1e3 * weak, "weak_efficiency": one / weak}
        if p <= batch_size:  # there is an example for every device
            row |= {"strong_ms": 1e3 * strong, "strong_efficiency": one / p / strong}
        rows.append(row)
    return rows


def fit(points: Sequence[tuple[float, float, float]], batch_size: int) -> Cost:
    """The cost from (batch, CG steps, seconds): two batches, two numbers of CG steps.

    seconds = a + b · batch + steps · (c + d · batch). Noise makes nothing negative.
    """
    batch, steps, seconds = np.array(points).T
    terms = np.stack([np.ones_like(batch), batch, steps, steps * batch], axis=1)
    a, b, c, d = map(float, np.linalg.lstsq(terms, seconds)[0])

    def split(fixed: float, slope: float) -> tuple[float, float]:
        total = max(fixed + slope * batch_size, 0.0)
        shared = min(max(slope * batch_size, 0.0), total)
        return shared, total - shared

    (outside, fixed_outside), (per_step, fixed_per_step) = split(a, b), split(c, d)
    return Cost(outside, per_step, fixed_outside, fixed_per_step)


def measured_cost(config: Config, examples: Examples) -> Cost:
    """The cost on one device, from medians over interleaved repeats."""
    methods: list[Any] = [config.method]
    if cg_of(config):
        limits = [CG(max_steps=k, rtol=0.0) for k in (2, 10)]
        methods = [replace(method, cg=cg) for method in methods for cg in limits]
    unit = curvature_share(config).denominator
    sizes = unit * max(1, config.batch_size // (4 * unit)), max(2, config.batch_size)
    configs = [replace(config, batch_size=b, method=m) for b in sizes for m in methods]
    runs = [timer(c, examples) for c in configs]
    steps = [run()[1] for run in runs]  # the first run warms up
    if cg_of(config) and min(steps[1::2]) < 3:
        raise UsageError(
            "CG ends here before its third step, too soon to time one: it converges "
            "(give less --method.damping) or meets negative curvature (give more)"
        )
    times, deadline = [], time.monotonic() + 2
    while len(times) < 5 or time.monotonic() < deadline:
        times.append([run()[0] for run in runs])
    seconds = map(statistics.median, zip(*times, strict=True))
    batches = [c.batch_size for c in configs]
    return fit(list(zip(batches, steps, seconds, strict=True)), config.batch_size)


def cg_of(config: Config) -> CG | None:
    """The CG of a config's method, where it has one."""
    return getattr(config.method, "cg", None)
