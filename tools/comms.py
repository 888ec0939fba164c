"""What a step sends between devices, and what that should cost on a cluster.

    python tools/comms.py CONFIG.py --devices N [--cg-steps K] [--bandwidth GB/s]
        [--latency MICROSECONDS] [--product-ms MS] [--json] [--batch-size 512 …]
    python tools/comms.py CONFIG.py --gpus HOSTSxGPUS [--card H100] [--cg-steps K]
        [--efficiency 0.5] [--bandwidth GB/s] [--latency MICROSECONDS] [--json] […]

With --devices the collectives are read off the program that XLA compiles for one update
over N devices (with JAX_PLATFORMS=cpu, virtual ones): they are what runs, not what
should. Over P devices, with K steps of conjugate gradients (CG), a step is then
predicted to take

    step(P) = replicated outside + K · replicated per CG step
            + share · (shared outside + K · shared per CG step)
            + Σ collectives, those inside the CG loop K times.

Shared work grows with a device's batch; the replicated rest every device does whole.
Weak scaling gives every device the config's batch (share = 1), strong scaling splits it
(share = 1/P). The four times are measured on one device of this machine, best idle, by
straight lines through 2 and 10 CG steps, and through the batch and a quarter of it. On
other hardware put --product-ms for the shared time per CG step: that of one product at
the config's batch, there. K is the config's limit unless given; what a run takes is
`cg_steps` in its metrics.jsonl. What is in a branch, such as a preconditioner's probe,
runs at some steps: it is listed, and not in these sums.

A collective of n bytes is a ring, in rounds in which each device sends n/P bytes to the
next (Patarasuk & Yuan 2009), and nothing overlaps: CG needs each sum to go on.

    all-reduce    2 (P-1) · (n/P / bandwidth + latency)
    all-gather      (P-1) · (n/P / bandwidth + latency), n bytes of result

Newton's dense solve is not predicted so: see NOT_PREDICTED.

With --gpus it is the program for so many NVIDIA GPUs, compiled without one, for the
config's batch over all of them: communication/gpu_compiler.py says how, and
communication/gpu_cost.py what a step is predicted to take from a card's peaks.
"""

import argparse
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax

from communication import gpu_report
from communication.cards import CARDS, NVLINK_LATENCY
from communication.compiled import collectives_of, one_update
from communication.cost import (
    Link,
    cg_of,
    measured_cost,
    predictions,
    repeats,
    rounds,
    step_seconds,
)
from communication.gpu_compiler import compile_step
from communication.gpu_cost import Layout
from hfdist import Newton
from hfdist.errors import UsageError
from hfdist.parallel import make_mesh
from hfdist.pytree import parameter_count
from hfdist.runs.config import Config, load
from hfdist.runs.plan import check_sizes
from hfdist.runs.progress import print_table
from hfdist.tasks.examples import readable
from toolkit import command_line

NOT_PREDICTED = {
    "dense": "Not predicted: every device factorises the whole matrix; the model here "
    "is of work that is shared out by examples.",
    "reduced": "Not predicted: this batch has fewer examples than an example has "
    "inputs, so the step is solved in their span, at a cost that is not linear in the "
    "batch; give the --batch-size of many devices, one of at least as many examples.",
    "share": "Not predicted for other numbers of GPUs: this batch has fewer examples "
    "than an example has inputs, so the step is solved in their span, at a cost that "
    "is not linear in the batch.",
}
HEAD = "{config}: {parameters:,} parameters, batch {batch_size}, {cg_steps} CG steps"
TITLES = {
    "collectives": "Compiled for {devices} devices, a step has "
    "{bytes_per_step:,} bytes in {rounds_per_step:,} rounds\n"
    "(a branch is taken at some steps, and is not in these sums)",
    "arithmetic_ms": "Arithmetic on one device here, batch {batch_size}, in ms",
    "predictions": "Assuming {bandwidth_gb_per_s:g} GB/s and {latency_us:g} µs; "
    "weak: batch {batch_size} on each device, strong: on all",
}
GPU_TITLES = {
    "collectives": "Compiled by jax {jax} for {hosts:,} host(s) of {gpus_per_host} "
    "{card}, {share} examples on each GPU;\n"
    "{bytes_per_step:,} bytes in a step without branches; beside: kernels meanwhile",
    "memory": "Memory of each GPU; JAX takes 75 % of it unless told otherwise\n"
    "(XLA_PYTHON_CLIENT_MEM_FRACTION)",
    "work": "What each GPU does, at {efficiency:g} of its peaks and 3.5 µs a kernel",
    "predictions": "By NVLink inside a host, by {bandwidth_gb_per_s:g} GB/s a GPU and "
    "{latency_us:g} µs between hosts;\nweak: {share} examples on each GPU, strong: "
    "batch {batch_size} on all",
}
NUMBERS = "devices", "cg_steps", "bandwidth", "latency", "product_ms", "efficiency"
STEP = (
    "A step: {step_ms:.3g} ms; with all that is due at some steps: "
    "{step_with_all_branches_ms:.3g} ms"
)


def report(arguments: argparse.Namespace) -> dict[str, Any]:
    """All there is to say, ready for JSON."""
    config = load(arguments.config, arguments.overrides)
    _check(config, arguments)
    of = _report if arguments.gpus is None else _report_gpus
    with jax.enable_x64(config.dtype == "float64"):
        return {"config": str(arguments.config)} | of(config, arguments)


def _report(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    devices, cg_steps = arguments.devices, _cg_steps(config, arguments)
    mesh = make_mesh(devices)  # before anything else starts JAX
    examples = readable(config.data.examples("train"))
    check_sizes(config, len(examples), devices)
    step, start = one_update(config, examples, mesh)
    text = jax.jit(step).lower(*start).compile().as_text()
    found = collectives_of(text or "")
    rows = []
    for c, count in Counter(sorted(found, key=lambda c: c.in_loop)).items():
        times = count * repeats(c, cg_steps)
        row = {
            **c._asdict(),
            "count": count * c.times,
            "bytes_per_step": times * c.bytes,
        }
        del row["times"]
        rows.append(row | {"rounds_per_step": times * rounds(c.kind, devices)})
    said = {
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
    if _in_span(config, found):
        return said | {"not_predicted": NOT_PREDICTED["reduced"]}
    cost = measured_cost(config, examples)
    if arguments.product_ms:
        cost = cost._replace(per_cg_step=1e-3 * arguments.product_ms)
    link = Link(1e9 * (arguments.bandwidth or 25), 1e-6 * arguments.latency)
    seconds = partial(step_seconds, cost, cg_steps, found, link=link)
    return said | {
        "bandwidth_gb_per_s": link.bandwidth / 1e9,
        "latency_us": arguments.latency,
        "arithmetic_ms": [{name: 1e3 * s for name, s in cost._asdict().items()}],
        "predictions": predictions(seconds, config.batch_size),
    }


def _report_gpus(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    name, efficiency = arguments.card or "H100", arguments.efficiency or 0.5
    card, (hosts, each) = CARDS[name], parse_gpus(arguments.gpus)
    examples = readable(config.data.examples("train"))
    check_sizes(config, len(examples), hosts * each)
    bandwidth = 1e9 * arguments.bandwidth if arguments.bandwidth else card.network
    layout = Layout(
        hosts,
        each,
        inside=Link(card.nvlink, NVLINK_LATENCY),
        between=Link(bandwidth, 1e-6 * arguments.latency),
    )
    step = compile_step(arguments.config, arguments.overrides, f"{hosts}x{each}", name)
    cg_steps = _cg_steps(config, arguments)
    plan = gpu_report.plan(step, cg_steps, card, layout, efficiency)
    said = gpu_report.report(step, plan, config.batch_size)
    if _in_span(config, plan.parts):
        return said | {"not_predicted": NOT_PREDICTED["share"]}
    return said | {"predictions": gpu_report.predictions(plan, config.batch_size)}


def _in_span(config: Config, collectives: Iterable[Any]) -> bool:
    """Whether the step is solved in the span of the inputs, by what it gathers."""
    gathers = any(one.kind != "all-reduce" for one in collectives)
    return gathers and config.sharding == "replicated"


def parse_gpus(text: str) -> tuple[int, int]:
    """Hosts and GPUs of each, of "128x8"."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise UsageError(
            f"--gpus is {text}: give hosts and GPUs of each, such as 1x8 or 128x8"
        )
    return int(found[1]), int(found[2])


def _cg_steps(config: Config, arguments: argparse.Namespace) -> int:
    cg = cg_of(config)
    return arguments.cg_steps or (cg.max_steps if cg else 0)


def _check(config: Config, arguments: argparse.Namespace) -> None:
    for name in NUMBERS:
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} is {value:g}: use a number above 0")
    if cg_of(config) is None and (arguments.cg_steps or arguments.product_ms):
        raise UsageError(
            f"{type(config.method).__name__} takes no CG steps: leave out --cg-steps "
            f"and --product-ms"
        )
    if arguments.gpus is None:
        _check_devices(config, arguments)
    else:
        _check_gpus(arguments)


def _check_devices(config: Config, arguments: argparse.Namespace) -> None:
    if arguments.devices < 2 or config.batch_size % arguments.devices:
        raise UsageError(
            f"--devices {arguments.devices}: use 2 or more that can share the batch of "
            f"{config.batch_size} evenly, or another --batch-size"
        )
    if arguments.card or arguments.efficiency:
        raise UsageError("--card and --efficiency are for --gpus: leave them out")


def _check_gpus(arguments: argparse.Namespace) -> None:
    parse_gpus(arguments.gpus)
    if arguments.product_ms:
        raise UsageError("--product-ms is for --devices: leave it out")
    if arguments.card not in (None, *CARDS):
        raise UsageError(f"--card is {arguments.card}: use one of {', '.join(CARDS)}")
    if arguments.efficiency and arguments.efficiency > 1:
        raise UsageError(
            f"--efficiency is {arguments.efficiency:g}: use 1, its peaks, or less"
        )


def main() -> int:
    """Plan for one config; exit code 2 for a caller's mistake."""
    parser = command_line.parser(
        "What a step sends between devices, and what that should cost.",
        "Further options override the config's, such as --batch-size 512.",
    )
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG.py")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--devices", type=int, help="to compile for, 2 or more")
    which.add_argument("--gpus", metavar="HOSTSxGPUS", help="to compile for: 128x8")
    add("--card", help=f"of the GPUs: {', '.join(CARDS)}; H100")
    add("--efficiency", type=float, help="part of the card's peaks; 0.5")
    add("--cg-steps", type=int, help="of a step; the config's limit by default")
    add("--bandwidth", type=float, help="GB/s of a device; 25, or the card's network")
    add("--latency", type=float, default=10.0, help="microseconds a message; 10")
    add("--product-ms", type=float, help="of one product, where measured elsewhere")
    arguments, arguments.overrides = parser.parse_known_args()
    return command_line.run("comms", arguments, report, _print)


def _print(said: dict[str, Any]) -> None:
    print(HEAD.format(**said))
    for name, title in (GPU_TITLES if "card" in said else TITLES).items():
        rows = said.get(name)
        if rows:
            print("\n" + title.format(**said))
            header = [column.replace("_", " ") for column in rows[0]]
            print_table([row.values() for row in rows], header, justify="right")
    if "step_ms" in said:
        print("\n" + STEP.format(**said))
    if said.get("not_counted"):
        print(f"Not counted: {', '.join(said['not_counted'])}")
    if "not_predicted" in said:
        print("\n" + said["not_predicted"])


if __name__ == "__main__":
    sys.exit(main())
