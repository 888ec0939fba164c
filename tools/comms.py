"""What a step sends between devices, and what that should cost on a cluster.

    python tools/comms.py CONFIG.py --devices N [--cg-steps K] [--bandwidth GB/s]
        [--latency MICROSECONDS] [--product-ms MS] [--json] [--batch-size 512 …]

The collectives are read off the program that XLA compiles for one update over N devices
(with JAX_PLATFORMS=cpu, virtual ones): they are what runs, not what should. Over P
devices, with K steps of conjugate gradients (CG), a step is then predicted to take

    step(P) = replicated outside + K · replicated per CG step
            + share · (shared outside + K · shared per CG step)
            + Σ collectives, those inside the CG loop K times.

Shared work grows with a device's batch; the replicated rest every device does whole.
Weak scaling gives every device the config's batch (share = 1), strong scaling splits it
(share = 1/P). The four times are measured on one device of this machine, best idle, by
straight lines through 2 and 10 CG steps, and through the batch and a quarter of it. On
other hardware put --product-ms for the shared time per CG step: that of one product at
the config's batch, there. K is the config's limit unless given; what a run takes is
`cg_steps` in its metrics.jsonl.

A collective of n bytes is a ring, in rounds in which each device sends n/P bytes to the
next (Patarasuk & Yuan 2009), and nothing overlaps: CG needs each sum to go on.

    all-reduce    2 (P-1) · (n/P / bandwidth + latency)
    all-gather      (P-1) · (n/P / bandwidth + latency), n bytes of result

Libraries that change to trees for short messages, whose latencies grow with log P, do
better over many devices. Newton's dense solve is not predicted: see NOT_PREDICTED.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from compiled import Collective, collectives_of, one_update, timer
from hfdist import Method, Newton
from hfdist.data.idx import Examples
from hfdist.errors import UsageError
from hfdist.parallel import make_mesh
from hfdist.pytree import parameter_count
from hfdist.runs.config import Config, load
from hfdist.solvers.cg import CG

NOT_PREDICTED = {
    "dense": "Not predicted: every device factorises the whole matrix; the model here "
    "is of work that is shared out by examples.",
    "reduced": "Not predicted: this batch has fewer examples than an example has "
    "inputs, so the step is solved in their span, at a cost that is not linear in the "
    "batch; give the --batch-size of many devices, one of at least as many examples.",
}
TITLES = {
    "collectives": "Compiled for {devices} devices, a step has "
    "{bytes_per_step:,} bytes in {rounds_per_step:,} rounds",
    "arithmetic_ms": "Arithmetic on one device here, batch {batch_size}, in ms",
    "predictions": "Assuming {bandwidth_gb_per_s:g} GB/s and {latency_us:g} µs; "
    "weak: batch {batch_size} on each device, strong: on all",
}


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
        (cg_steps if c.in_loop else 1) * ring_seconds(c.kind, c.bytes, devices, link)
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
    if _cg(config):
        limits = [CG(max_steps=k, rtol=0.0) for k in (2, 10)]
        methods = [replace(method, cg=cg) for method in methods for cg in limits]
    sizes = max(1, config.batch_size // 4), max(2, config.batch_size)
    configs = [replace(config, batch_size=b, method=m) for b in sizes for m in methods]
    runs = [timer(c, examples) for c in configs]
    steps = [run()[1] for run in runs]  # the first run warms up
    if _cg(config) and min(steps[1::2]) < 3:
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


def repeats(collective: Collective, method: Method, cg_steps: int) -> int:
    """How often a step runs a collective of its loop."""
    if not isinstance(method, Newton):
        return cg_steps
    # The loop over whole blocks of columns, each with all rows; a rest is outside.
    block = method.dense.block
    rows = collective.bytes // (block * np.dtype("float32").itemsize)
    return rows // block


def _cg(config: Config) -> CG | None:
    return getattr(config.method, "cg", None)


def report(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    """All there is to say, ready for JSON."""
    _check(config, arguments)
    cg, devices = _cg(config), arguments.devices
    cg_steps = arguments.cg_steps or (cg.max_steps if cg else 0)
    mesh = make_mesh(devices)  # before anything else starts JAX
    examples = config.data.load("train")
    step, start = one_update(config, examples, mesh)
    text = jax.jit(step).lower(*start).compile().as_text()
    found = collectives_of(text or "")
    rows = []
    for c, count in Counter(sorted(found, key=lambda c: c.in_loop)).items():
        times = count * (repeats(c, config.method, cg_steps) if c.in_loop else 1)
        row = {**c._asdict(), "count": count, "bytes_per_step": times * c.bytes}
        rows.append(row | {"rounds_per_step": times * rounds(c.kind, devices)})
    said = {
        "config": str(arguments.config),
        "parameters": parameter_count(start[0][0]),
        "batch_size": config.batch_size,
        "devices": devices,
        "cg_steps": cg_steps,
        "bytes_per_step": sum(row["bytes_per_step"] for row in rows),
        "rounds_per_step": sum(row["rounds_per_step"] for row in rows),
        "collectives": rows,
    }
    if isinstance(config.method, Newton):
        return said | {"not_predicted": NOT_PREDICTED["dense"]}
    if any(c.kind != "all-reduce" for c in found):
        return said | {"not_predicted": NOT_PREDICTED["reduced"]}
    cost = measured_cost(config, examples)
    if arguments.product_ms:
        cost = cost._replace(per_cg_step=1e-3 * arguments.product_ms)
    link = Link(1e9 * arguments.bandwidth, 1e-6 * arguments.latency)
    seconds = partial(step_seconds, cost, cg_steps, found, link=link)
    return said | {
        "bandwidth_gb_per_s": arguments.bandwidth,
        "latency_us": arguments.latency,
        "arithmetic_ms": [{name: 1e3 * s for name, s in cost._asdict().items()}],
        "predictions": predictions(seconds, config.batch_size),
    }


def _check(config: Config, arguments: argparse.Namespace) -> None:
    for name in ("devices", "cg_steps", "bandwidth", "latency", "product_ms"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} is {value:g}: use a number above 0")
    if arguments.devices < 2 or config.batch_size % arguments.devices:
        raise UsageError(
            f"--devices {arguments.devices}: use 2 or more that can share the batch of "
            f"{config.batch_size} evenly, or another --batch-size"
        )
    if _cg(config) is None and (arguments.cg_steps or arguments.product_ms):
        raise UsageError(
            f"{type(config.method).__name__} takes no CG steps: leave out --cg-steps "
            f"and --product-ms"
        )


def main() -> int:
    """Plan for one config; exit code 2 for a caller's mistake."""
    parser = argparse.ArgumentParser(
        description="What a step sends between devices, and what that should cost.",
        epilog="Further options override the config's, such as --batch-size 512.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG.py")
    add("--devices", type=int, required=True, help="to compile for, 2 or more")
    add("--cg-steps", type=int, help="of a step; the config's limit by default")
    add("--bandwidth", type=float, default=25.0, help="GB/s of a device; 25: 200 Gb/s")
    add("--latency", type=float, default=10.0, help="microseconds a message; 10")
    add("--product-ms", type=float, help="of one product, where measured elsewhere")
    add("--json", action="store_true", help="print one JSON object")
    arguments, overrides = parser.parse_known_args()
    try:
        config = load(arguments.config, overrides)
        with jax.enable_x64(config.dtype == "float64"):
            said = report(config, arguments)
    except UsageError as error:
        print(f"comms: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(said))
    else:
        _print(said)
    return 0


def _print(said: dict[str, Any]) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    head = (
        "{config}: {parameters:,} parameters, batch {batch_size}, {cg_steps} CG steps"
    )
    console.print(head.format(**said))
    for name, title in TITLES.items():
        if name in said:
            console.print("\n" + title.format(**said))
            console.print(_table(said[name]))
    if "not_predicted" in said:
        console.print("\n" + said["not_predicted"])


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{value:,}" if type(value) is int else str(value)


if __name__ == "__main__":
    sys.exit(main())
