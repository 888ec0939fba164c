"""What the precision of matrix products does to curvature and steps.

float32 at each precision that JAX may be asked for, against float64 on the same device,
with the same params, batch and vectors: gradient, products, the solution of 10 CG steps
and that of the dense solve. On an NVIDIA GPU JAX's "default" and "high" are TF32, with
10 bits of mantissa, and "highest" is float32; TF32_TF32_F32_X3 makes one product of
three in TF32.
"""

import math
import statistics
import traceback
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from optax import tree

import hfdist
from benchmarks.measurement import AUTOENCODER, seconds_each
from benchmarks.step import example
from gpu_check.part import Row, Said, Work
from hfdist.errors import told
from hfdist.problem import Batch, Problem
from hfdist.pytree import PyTree

KINDS = ("gauss_newton", "hessian", "finite_difference")
COMPARED = ("gradient", *KINDS, "CG", "dense")
PRECISIONS = ("highest", "high", "default")
ON_GPUS = ("TF32_TF32_F32_X3",)
CG = hfdist.CG(max_steps=10, rtol=0.0)
DAMPING = 4.0  # the paper's, for Hessian-free Gauss-Newton
NEWTON = hfdist.Newton(  # the exact solution of the same system
    curvature="gauss_newton", damping=DAMPING, learning_rate=1.0
)
REPEATS = 3
MOST = 1e-4  # error at "highest" of all but finite differences
WORSE, FASTER = 10.0, 0.95  # of the rule


class Case(NamedTuple):
    """A network and a batch of MNIST."""

    name: str
    hidden: tuple[int, ...]
    outputs: int
    batch: int
    dense: bool  # whether its matrix fits


SMALL = Case("784-10-10", (10,), 10, 64, dense=True)
CASES = (
    SMALL,
    Case("784-128-10", (128,), 10, 16, dense=True),  # 3,466 unknowns
    Case("autoencoder", AUTOENCODER, 784, 512, dense=False),
)


def measure(work: Work) -> Said:
    """The rule, and a row for each network and precision; a network's last has what
    follows so far."""
    yield (
        "The default that follows is the fastest in CG on the last network, of the "
        f"precisions whose CG solution has within {WORSE:g} times the error of "
        "highest's on every network; highest, unless that is "
        f"{100 * (1 - FASTER):.0f} % faster."
    )
    precisions = PRECISIONS
    if jax.default_backend() == "gpu":
        precisions += ON_GPUS
    rows: list[Row] = []
    for case in (SMALL._replace(batch=16),) if work.quick else CASES:
        for row in _rows(case, precisions):
            rows.append(row)
            if row["precision"] == precisions[-1]:
                row["default"] = default([row for row in rows if "CG" in row])
            yield row


def default(rows: list[Row]) -> str:
    """Which precision should be the default, by the rule."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    errors = {(row["network"], row["precision"]): row["CG"] for row in rows}
    times = {r["precision"]: r["CG ms"] for r in rows if r["network"] == networks[-1]}

    def is_near(precision):
        pairs = (
            (errors.get((n, precision), math.inf), errors.get((n, "highest"), 0.0))
            for n in networks
        )
        return all(other <= WORSE * highest for other, highest in pairs)

    near = [precision for precision in times if is_near(precision)]
    best = min(near, key=lambda precision: times[precision], default="highest")
    faster = times[best] <= FASTER * times["highest"] if near else False
    return best if faster else "highest"


def _rows(case: Case, precisions: tuple[str, ...]) -> Iterator[Row]:
    """One that a precision does not get is a failure of its own."""
    problem, params, batch = example(case.hidden, case.outputs, case.batch)
    v = tree.random_like(jax.random.key(0), params, jax.random.normal)
    arguments = params, batch, v
    with jax.enable_x64(True):
        wide = map(_in_float64, arguments)
        exact = _in_numpy(_quantities(problem, case.dense, *wide))
    for precision in precisions:
        row: Row = {"network": case.name, "precision": precision}
        try:
            with jax.default_matmul_precision(precision):
                found = _in_numpy(_quantities(problem, case.dense, *arguments))
                seconds = _cg_seconds(problem, params, batch)
        except Exception as failure:
            traceback.print_exc()
            yield row | {"failure": told(failure), "ok": False}
            continue
        errors = {n: error(found[n], exact[n]) for n in COMPARED if n in exact}
        row |= errors | {"CG ms": 1e3 * seconds}
        if precision == "highest":
            judged = [x for name, x in errors.items() if name != "finite_difference"]
            row["ok"] = all(x < MOST for x in judged)
        yield row


@partial(jax.jit, static_argnums=(0, 1))
def _quantities(
    problem: Problem, dense: bool, params: PyTree, batch: Batch, v: PyTree
) -> dict[str, PyTree]:
    """All that is compared, in one program: compilation is what takes the time."""
    gradient = hfdist.quadratic(problem, params, batch).gradient
    found = {"gradient": gradient}
    for kind in KINDS:
        matrix = hfdist.curvature(problem, params, batch, kind)
        found[kind] = matrix.product(v)
    found["CG"] = _cg(problem, params, batch, gradient)
    if dense:
        optimizer = NEWTON.build(problem)
        update: Any = optimizer.update
        found["dense"], _ = update(None, optimizer.init(params), params, batch=batch)
    return found


def _cg(problem: Problem, params: PyTree, batch: Batch, b: PyTree) -> PyTree:
    """x after 10 CG steps on (G + λI) x = b."""
    return hfdist.curvature(problem, params, batch).solve(b, DAMPING, CG).x


def _cg_seconds(problem: Problem, params: PyTree, batch: Batch) -> float:
    solve = partial(_cg, problem, params, batch, params)
    seconds_each(solve, repeats=1)
    return statistics.median(seconds_each(solve, repeats=REPEATS))


def _in_float64(arrays: PyTree) -> PyTree:
    def wide(a):
        return a.astype("float64") if a.dtype == "float32" else a

    return jax.tree.map(wide, arrays)


def _in_numpy(found: dict[str, PyTree]) -> dict[str, np.ndarray]:
    """Raveled, and in float64."""
    return {
        name: np.concatenate(
            [np.ravel(leaf) for leaf in jax.tree.leaves(value)], dtype=np.float64
        )
        for name, value in found.items()
    }


def error(found: np.ndarray, exact: np.ndarray) -> float:
    """‖found - exact‖ / ‖exact‖."""
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
