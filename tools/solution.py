"""What a physics-informed net learnt: the solution, its error, and how that fell.

    python tools/solution.py RUN_DIR [--step S] [--out PREFIX] [--json]
        [--config CONFIG.py]

PREFIX.png and PREFIX.svg show u and |u - u*| on the plane of the first two axes through
the centre of the domain, of the newest checkpoint, and the relative errors that the run
has measured, over the seconds of training.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drawings.solutions import Plane, draw
from hfdist.errors import UsageError
from hfdist.problem import Problem
from hfdist.pytree import PyTree
from hfdist.runs.config import load
from hfdist.runs.progress import digits
from hfdist.runs.resume import restore_params
from hfdist.tasks.physics import Physics
from toolkit import command_line
from toolkit.recorded import CONFIG_HELP, read

SIDE = 201  # points along a side of the plane


def plane_of(task: Physics, problem: Problem, params: PyTree) -> Plane:
    """u and u* on the plane of the first two axes, the others in the middle."""
    predict = jax.jit(problem.predict)
    low, high = task.box[:, :2]
    first, second = np.linspace(low, high, SIDE).T
    x_BD = np.tile(task.box.mean(0), (SIDE**2, 1))
    x_BD[:, :2] = np.stack(np.meshgrid(first, second), -1).reshape(-1, 2)
    u = np.reshape(jax.device_get(predict(params, {"inputs": x_BD})), (SIDE, SIDE))
    known = task.solution(x_BD).reshape(u.shape)
    return Plane(first, second, u, known, task.coordinates[:2])


def report(arguments: argparse.Namespace) -> dict[str, Any]:
    """All there is to say, ready for JSON; draws the figure."""
    if arguments.config:
        load(arguments.config)
    run = read(arguments.run_dir)
    task = run.config.data
    if not isinstance(task, Physics) or task.dimensions < 2:
        raise UsageError(
            f"{run.folder} is no run of an equation in two dimensions or more: give "
            f"one of a config in configs/physics/"
        )
    with jax.enable_x64(run.config.dtype == "float64"):
        problem, like = run.config.build_problem()
        step, params = restore_params(run.folder, like, arguments.step)
        plane = plane_of(task, problem, params)
    over_time = run.test["seconds"], run.test.get("relative_error", np.zeros(0))
    prefix = arguments.out or run.folder / "solution"
    return {
        "run_dir": str(run.folder),
        "step": step,
        "relative_error": float(plane.relative_error),
        "largest_error": float(plane.error.max()),
        "figures": [str(path) for path in draw(plane, *over_time, prefix)],
    }


def main() -> int:
    """Draw one run's solution; exit code 2 for a caller's mistake."""
    parser = command_line.parser("The solution that a physics-informed net learnt.")
    add = parser.add_argument
    add("run_dir", type=Path, metavar="RUN_DIR")
    add("--step", type=int, help="of a checkpoint; the newest by default")
    add("--out", type=Path, metavar="PREFIX", help="of the figures; RUN_DIR/solution")
    add("--config", type=Path, metavar="CONFIG.py", help=CONFIG_HELP)
    return command_line.run("solution", parser.parse_args(), report, _print)


def _print(said: dict[str, Any]) -> None:
    print(
        f"{said['run_dir']}, step {said['step']:,}: relative error "
        f"{digits(said['relative_error'])} on the plane, largest error "
        f"{digits(said['largest_error'])}"
    )
    print(f"Drawn in {' and '.join(said['figures'])}")


if __name__ == "__main__":
    sys.exit(main())
