"""Weak and strong scaling of an HF-GN step over processes on this machine.

Every process is pinned to a core of its own and holds its share of the batch; they
meet over loopback, in gloo. The autoencoder 784-1000-500-250-30 mirrored has 2.8
million parameters, so that each all-reduce moves 11 MB. Run by `tools/bench.py`; each
process is this module again, which prints what it measured as JSON.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from optax import tree

import hfdist
from benchmarks.measurement import AUTOENCODER, Measurement, seconds_each
from communication.compiled import Collective, collectives_of
from communication.cost import Cost, Link, step_seconds
from hfdist.cluster.processes import joined
from hfdist.methods.method import make_step
from hfdist.models.mlp import MLP
from hfdist.models.model import functional
from hfdist.parallel import (
    collectives,
    data_parallel,
    local_rows,
    place_chunk,
    replicate,
)
from hfdist.pytree import parameter_count
from hfdist.quadratics import quadratic
from hfdist.tasks.idx import IDX
from hfdist.tasks.pipeline import GlobalBatches

EXAMPLES, CG_STEPS, ROUNDS, REPEATS = 1000, 10, 3, 5
SENT = "weak sends", "shared sends"  # what is no time among the results
TOOLS = Path(__file__).parent.parent


def scaling() -> list[Measurement]:
    """One process against two, then four … up to the number of cores.

    The rounds alternate between the numbers of processes, whose medians are compared.
    """
    counts = [p for p in (1, 2, 4, 8, 16) if p <= len(os.sched_getaffinity(0))]
    rounds = [[_run(processes) for processes in counts] for _ in range(ROUNDS)]
    alone, *others = (_medians(runs) for runs in zip(*rounds, strict=True))
    measured = _split("1 process", alone)
    for processes, seen in zip(counts[1:], others, strict=True):
        measured += _against(alone, seen, processes)
    return measured


def _medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the seconds of several runs; what they send is the same in each."""
    return {
        name: value if name in SENT else statistics.median(run[name] for run in runs)
        for name, value in runs[0].items()
    }


def _split(name: str, seen: dict[str, float]) -> list[Measurement]:
    """Where a weak-scaling step's time goes."""
    products = CG_STEPS * seen["product"]
    reduces = (CG_STEPS + 1) * seen["all_reduce"]
    parts = {
        "step": seen["weak"],
        "its products": products,
        "its all-reduces": reduces,
        "the rest, waiting included": seen["weak"] - products - reduces,
    }
    return [
        Measurement(f"{name}: {part}", seconds * 1e3, None, "ms")
        for part, seconds in parts.items()
    ]


def _against(alone, seen, processes: int) -> list[Measurement]:
    name = f"{processes} processes"
    strong = seen["strong"] / alone["weak"]
    return [
        *_split(name, seen),
        Measurement(f"{name}: all-reduce of 1 MB", seen["megabyte"] * 1e3, None, "ms"),
        Measurement(f"{name}: strong speed-up", 1 / strong, None, "ratio"),
        *_weak(name, "weak", alone, seen, processes, 0.85),
        *_weak(f"{name}, vectors shared out", "shared", alone, seen, processes, 0.9),
    ]


def _weak(name, step, alone, seen, processes: int, efficiency) -> list[Measurement]:
    """A step on as many examples a process as one process has, and the model's."""
    longer = seen[step] / alone["weak"]
    off = _predicted(alone, seen, seen[f"{step} sends"], processes) / seen[step]
    return [
        Measurement(f"{name}: weak step / step of 1", longer, 1 / efficiency, "ratio"),
        Measurement(f"{name}: weak efficiency", 1 / longer, None, "ratio"),
        Measurement(f"{name}: model / weak step", off, 1.2, "ratio"),
        Measurement(f"{name}: weak step / model", 1 / off, 1.2, "ratio"),
    ]


def _predicted(alone, seen, sends: list[Any], processes: int) -> float:
    """Seconds of a weak-scaling step, by the model, from one process and the link,
    which the collectives of its compiled program take.

    Of the ring model t(n) = 2 (P-1)/P n / bandwidth + 2 (P-1) latency, two sizes give
    the bandwidth and the latency.
    """
    large, small = 4 * alone["parameters"], 1e6
    slope = (seen["all_reduce"] - seen["megabyte"]) / (large - small)
    hops = 2 * (processes - 1)
    latency = max(0.0, (seen["megabyte"] - slope * small) / hops)
    link = Link(bandwidth=hops / processes / slope, latency=latency)
    cost = Cost(alone["weak"], 0.0, 0.0, 0.0)
    moved = [Collective(*one) for one in sends]
    return step_seconds(cost, CG_STEPS, moved, processes, link)


def _run(processes: int) -> dict[str, Any]:
    """What process 0 of so many measures."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "HFDIST_COORDINATOR": f"localhost:{port}",
        "HFDIST_NUM_PROCESSES": str(processes),
        "HFDIST_START_SECONDS": "60",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scaling"],
            cwd=TOOLS,
            env={**env, "HFDIST_PROCESS_ID": str(process)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    outputs = [worker.communicate()[0] for worker in workers]
    assert not any(worker.returncode for worker in workers), outputs
    return json.loads(outputs[0].splitlines()[-1])


def _measure() -> dict[str, Any]:
    """Seconds of a step on this process's and the others' shares, and of its parts."""
    mesh = hfdist.make_mesh(1)
    predict, params = functional(MLP(hidden=AUTOENCODER).build(784, 784, 0))
    problem = hfdist.Problem(predict, hfdist.losses.squared_error)
    cg = hfdist.CG(max_steps=CG_STEPS, rtol=0)
    method = hfdist.HessianFree(damping=4.0, cg=cg, input_reduction=False)
    weak = _batch(EXAMPLES * jax.process_count(), mesh)
    strong = _batch(EXAMPLES, mesh)

    products = partial(_products, problem, mesh)
    reduces = partial(_all_reduces, mesh)
    vector = replicate(np.zeros(250_000, "f"), mesh)
    step = partial(_step, method, problem, mesh, params)
    steps = {
        "weak": step("replicated", weak),
        "shared": step("vectors", weak),
        "strong": step("replicated", strong),
    }
    params = replicate(params, mesh)
    programs = {
        **{name: run for name, (run, _) in steps.items()},
        "products": partial(products(CG_STEPS), None, None, params, weak),
        "no_products": partial(products(0), None, None, params, weak),
        "all_reduce": partial(reduces(), None, None, params, weak),
        "megabyte": partial(reduces(), None, None, vector, weak),
    }
    for program in programs.values():
        seconds_each(program, repeats=1)  # compiles
    times = [
        {
            name: seconds_each(program, repeats=1)[0]
            for name, program in programs.items()
        }
        for _ in range(REPEATS)
    ]
    medians = {name: statistics.median(t[name] for t in times) for name in programs}
    return {
        **{name: medians[name] for name in steps},
        **{f"{name} sends": steps[name][1] for name in ("weak", "shared")},
        "product": (medians["products"] - medians["no_products"]) / CG_STEPS,
        "all_reduce": medians["all_reduce"] / CG_STEPS,
        "megabyte": medians["megabyte"] / CG_STEPS,
        "parameters": parameter_count(params),
    }


def _step(method, problem, mesh, params, sharding, batch) -> tuple[Callable, list[Any]]:
    """An update, compiled, to run on a batch; and the collectives of its program."""
    optimizer = method.build(problem, mesh, sharding=sharding)
    carry = replicate((params, optimizer.init(params)), mesh)
    program = jax.jit(make_step(optimizer)).lower(carry, batch).compile()
    return partial(program, carry, batch), collectives_of(program.as_text() or "")


def _products(problem, mesh, count) -> Callable:
    """So many products over a device's own examples, and one all-reduce."""
    devices = collectives(mesh)

    def step(_, __, params, batch):
        local = devices.vary(params)
        model = quadratic(problem, local, batch, "gauss_newton", collectives(None))
        return devices.reduce(
            jax.lax.fori_loop(
                0, count, lambda _, v: tree.add_scale(v, 1e-4, model.product(v)), local
            )
        )

    return jax.jit(data_parallel(step, mesh))


def _all_reduces(mesh) -> Callable:
    """As many all-reduces of the third argument as a step has CG steps."""
    devices = collectives(mesh)

    def step(_, __, vector, batch):
        def body(_, v):
            return tree.scale(0.5, devices.reduce(devices.vary(v)))

        return jax.lax.fori_loop(0, CG_STEPS, body, vector)

    return jax.jit(data_parallel(step, mesh))


def _batch(examples: int, mesh) -> dict[str, jax.Array]:
    """The first MNIST images, to be reconstructed."""
    rows = partial(local_rows, mesh=mesh)
    source = GlobalBatches(IDX().examples("train"), examples, None, rows)
    chunk = place_chunk(source.chunk(0, 1), mesh)
    first = jax.tree.map(lambda a: a[0], chunk)
    inputs = jax.jit(partial(IDX().prepare, dtype="float32"))(first)
    return {"inputs": inputs["inputs"], "targets": inputs["inputs"]}


if __name__ == "__main__":
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["HFDIST_PROCESS_ID"])]})
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # as launch/local.py
    with joined():
        print(json.dumps(_measure()))
