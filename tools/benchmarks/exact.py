"""What an exact step costs, and what input reduction buys, beside SGD too."""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from optax import tree

import hfdist
from benchmarks.measurement import Measurement, seconds_each, trained
from hfdist.jacobian import written_jacobian
from hfdist.linearised import linearised
from hfdist.methods.method import make_step
from hfdist.models.mlp import MLP
from hfdist.problem import Batch, Problem
from hfdist.pytree import PyTree
from hfdist.runs.config import Config
from hfdist.runs.resume import restore_params
from hfdist.solvers.dense import columns
from hfdist.tasks.poisson import Poisson
from toolkit.batches import first_batch, mnist_batch

NEWTON = hfdist.Newton(damping=32.0, learning_rate=0.5)
ROUNDS = 3
STEPS = 100


def exact() -> list[Measurement]:
    """Reduced against unreduced, HF-GN against SGD, the dense solve against CG."""
    return [
        *_dense_step(),
        *_least_squares(),
        *_training("784-10-10", 10),
        *_training("784-128-10", 128),
        *_trajectories("float32", 1e-6, 1e-3),
        *_trajectories("float64", 1e-11, 1e-8),
    ]


def _dense_step() -> list[Measurement]:
    """A damped-Newton step of the paper's network in all params, and reduced."""
    problem, params = Config(method=NEWTON).build_problem()
    batch = mnist_batch("train", 64)

    def seconds(method: hfdist.Method, repeats: int) -> float:
        optimizer = method.build(problem)
        step = jax.jit(make_step(optimizer))
        carry = params, optimizer.init(params)
        seconds_each(step, carry, batch, repeats=1)
        return statistics.median(seconds_each(step, carry, batch, repeats=repeats))

    full = seconds(replace(NEWTON, input_reduction=False), 3)
    reduced = seconds(NEWTON, 20)
    return [
        Measurement("exact step, 7,960 unknowns", full * 1e3, None, "ms"),
        Measurement("exact step, reduced", reduced * 1e3, None, "ms"),
        Measurement("reduced / unreduced", reduced / full, 1 / 50, "ratio"),
    ]


def _least_squares() -> list[Measurement]:
    """Dense Gauss-Newton steps of a physics-informed net, beside the Jacobian alone.

    By columns, in forward mode, and with it written down by `with_jacobian`.
    """
    method = hfdist.Newton(
        curvature="gauss_newton", damping=1.0, damping_rule="nielsen"
    )
    with jax.enable_x64(True):
        by_columns, params, batch = _points(jacobian=False)
        written, _, _ = _points(jacobian=True)

        def jacobian_of(params: PyTree, batch: Batch) -> Any:
            at = linearised(by_columns, params, batch)
            return columns(at.jvp, at.wide, 128)

        rows_of = written_jacobian(written.predict)
        assert rows_of, "with_jacobian writes it down"
        carry = params, method.init(params)
        steps = [make_step(method.build(p)) for p in (by_columns, written)]
        arguments = [(jacobian_of, params), (steps[0], carry)]
        arguments += [(rows_of, params), (steps[1], carry)]
        jacobian, whole, rows, fast = (
            _milliseconds(jax.jit(function), argument, batch)
            for function, argument in arguments
        )
    name = "1,020 points, 257 params"
    return [
        Measurement(f"Jacobian by columns, {name}", jacobian, None, "ms"),
        Measurement("dense Gauss-Newton step", whole, None, "ms"),
        Measurement("step / its Jacobian", whole / jacobian, 3, "ratio"),
        Measurement("Jacobian of with_jacobian", rows, None, "ms"),
        Measurement("step with_jacobian", fast, 50, "ms"),
        Measurement("that step / its Jacobian", fast / rows, 3, "ratio"),
    ]


def _milliseconds(function: Callable, *args: Any) -> float:
    """Of a call, compiled before; the median of 20."""
    seconds_each(function, *args, repeats=1)
    return 1e3 * statistics.median(seconds_each(function, *args, repeats=20))


def _points(*, jacobian: bool) -> tuple[Problem, PyTree, Batch]:
    """Poisson's equation: problem, params, and all its points."""
    data, net = Poisson(jacobian=jacobian), MLP(hidden=(64,), activation="tanh")
    problem, params = Config(
        method=NEWTON, model=net, data=data, dtype="float64"
    ).build_problem()
    points = first_batch(data.examples("train"), 1020, seed=0)
    return problem, params, data.prepare(points, "float64")


def _training(name: str, width: int) -> list[Measurement]:
    """Seconds of 7 epochs of the trainer, of both methods in turn."""
    sgd = Config(method=hfdist.SGD(learning_rate=0.1), model=MLP(hidden=(width,)))
    hf = replace(sgd, method=hfdist.HessianFree(damping=4.0))
    pairs = [(_run(hf).seconds, _run(sgd).seconds) for _ in range(ROUNDS)]
    hf_seconds, sgd_seconds = (statistics.median(s) for s in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    return [
        Measurement(f"{name}: SGD, 7 epochs", sgd_seconds, None, "s"),
        Measurement(f"{name}: HF-GN, 7 epochs", hf_seconds, None, "s"),
        Measurement(f"{name}: HF-GN / SGD", ratio, 2.5, "ratio"),
    ]


def _trajectories(dtype: Any, rtol: float, limit: float) -> list[Measurement]:
    """Damped Newton by the dense solve and by tight CG, step after step."""
    tight = hfdist.CG(max_steps=500, rtol=rtol)
    by_cg = hfdist.HessianFree(
        curvature="hessian", damping=32.0, learning_rate=0.5, cg=tight
    )
    ends = []
    for method in (NEWTON, by_cg):
        config = Config(method=method, dtype=dtype, max_steps=STEPS)
        with tempfile.TemporaryDirectory() as folder, jax.enable_x64(True):
            _run(config, Path(folder))
            _, start = config.build_problem()
            ends.append(jax.device_get(restore_params(Path(folder), start)[1]))
    with jax.enable_x64(True):
        difference = tree.norm(tree.sub(*ends)) / tree.norm(ends[0])
    name = f"dense / CG to {rtol:.0e}, {STEPS} steps, {dtype}"
    return [Measurement(name, difference.item(), limit, "of params")]


def _run(config: Config, run_dir: Path | None = None):
    with tempfile.TemporaryDirectory() as folder:
        return trained(replace(config, checkpoint_minutes=1e6), run_dir or Path(folder))
