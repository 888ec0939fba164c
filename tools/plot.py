"""Compare runs: loss and accuracy against steps, time and cost, and how they got there.

    python tools/plot.py RUN_DIR... [--out PREFIX] [--json] [--config CONFIG.py]

Draws PREFIX.png and PREFIX.svg, one curve for each run. Bold lines are running medians
over 2 % of a run's steps, faint ones every step; values that are not finite are left
out, and so is a panel for which no run has values. Cost is counted in gradients: see
gradient_equivalents in tools/runs.py.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

import figures
from hfdist.errors import UsageError
from hfdist.runs.config import load
from hfdist.runs.progress import print_table
from runs import CONFIG_HELP, Run, gradient_equivalents, read, to_json

AXES = {
    "step": "step",
    "seconds": "seconds of training",
    "cost": "cost in gradients (Gauss-Newton product 4/3,\n"
    "Hessian 2, exact solve N products)",
}
DIAGNOSTICS = {
    "damping": "damping λ",
    "rho": "reduction ratio ρ",
    "cg_steps": "CG steps",
    "step_norm": "norm of the step",
}
LOG = {"loss", "damping", "step_norm"}
NOTE = (
    "Bold: running median over 2 % of a run's steps. Faint: every step. "
    "Values that are not finite are left out."
)


def with_cost(run: Run) -> Run:
    """The run with a column "cost", in gradients, for its steps and evaluations."""
    cost = gradient_equivalents(run)
    places = np.searchsorted(run.train["step"], run.test["step"])
    return run._replace(
        train={**run.train, "cost": cost}, test={**run.test, "cost": cost[places]}
    )


def names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, or as much of their paths as tells them apart."""
    real = [Path(os.path.realpath(folder)) for folder in folders]
    if len(set(real)) < len(folders):
        raise UsageError("a run directory is given twice: name each once")
    short = [folder.name for folder in real]
    if len(set(short)) == len(short):
        return short
    common = os.path.commonpath([folder.parent for folder in real])
    return [str(folder.relative_to(common)) for folder in real]


def summary(name: str, run: Run) -> dict[str, Any]:
    """A run in one row."""
    accuracy = run.test["accuracy"]
    return {
        "run": name,
        "steps": run.steps,
        "training loss of the last epoch": run.train_loss,
        "test accuracy": float(accuracy[-1]) if len(accuracy) else None,
        "training seconds": run.seconds,
        "cost in gradients": float(run.train["cost"][-1]),
        "diverged": run.diverged,
    }


def draw(named: dict[str, Run]) -> figures.Figure:
    """All panels that have something to show. Raises UsageError if none has."""
    rows = [
        [("loss", x) for x in AXES if _has(named, "loss")],
        [("accuracy", x) for x in AXES if any(len(r.test["step"]) for r in _of(named))],
        [(quantity, "step") for quantity in DIAGNOSTICS if _has(named, quantity)],
    ]
    rows = [row for row in rows if row]
    if not rows:
        raise UsageError("no run has a finite value to draw")
    drawn = figures.figure(12, 3.3 * len(rows) + 0.6)
    grid = drawn.add_gridspec(len(rows), 12)  # columns for 1, 2, 3 or 4 panels
    for i, row in enumerate(rows):
        width = 12 // len(row)
        for j, (quantity, x) in enumerate(row):
            axes = drawn.add_subplot(grid[i, j * width : (j + 1) * width])
            _panel(axes, named, quantity, x)
    looks = {
        f"{name} (diverged)" if run.diverged else name: figures.look(i)
        for i, (name, run) in enumerate(named.items())
    }
    figures.legend(drawn, looks)
    drawn.supxlabel(NOTE, fontsize=9, color="#444444")
    return drawn


def _of(named: dict[str, Run]) -> list[Run]:
    return list(named.values())


def _has(named: dict[str, Run], quantity: str) -> bool:
    return any(_drawable(run, quantity) for run in _of(named))


def _drawable(run: Run, quantity: str) -> bool:
    """Whether a run has the quantity: one that its method lacks is 0 or NaN."""
    values = run.train.get(quantity, np.zeros(1))
    return bool(np.any(np.isfinite(values) & (values != 0)))


def _panel(axes: Axes, named: dict[str, Run], quantity: str, x: str) -> None:
    for i, run in enumerate(_of(named)):
        if quantity == "accuracy":
            figures.line(axes, run.test[x], run.test[quantity], figures.look(i))
        elif _drawable(run, quantity):
            figures.trace(axes, run.train[x], run.train[quantity], figures.look(i))
    axes.set_xlabel(AXES[x])
    labels = {"loss": "training loss", "accuracy": "test accuracy", **DIAGNOSTICS}
    axes.set_ylabel(labels[quantity])
    if quantity in LOG:
        figures.log_scale(axes, "y")
    ends = [run.train[x][-1] for run in _of(named)]
    if x != "step" and max(ends) > 10 * min(ends):
        figures.log_scale(axes, "x")


def main() -> int:
    """Draw one comparison; exit code 2 for a caller's mistake."""
    parser = argparse.ArgumentParser(
        description="Compare runs of `hfdist train`.", allow_abbrev=False
    )
    add = parser.add_argument
    add("run_dirs", nargs="+", type=Path, metavar="RUN_DIR")
    add("--out", type=Path, default=Path("comparison"), metavar="PREFIX")
    add("--json", action="store_true", help="print one JSON object")
    add("--config", type=Path, metavar="CONFIG.py", help=CONFIG_HELP)
    arguments = parser.parse_args()
    try:
        if arguments.config:
            load(arguments.config)
        labels = names(arguments.run_dirs)
        runs = [with_cost(read(folder)) for folder in arguments.run_dirs]
        named = dict(zip(labels, runs, strict=True))
        paths = figures.save(draw(named), arguments.out)
    except UsageError as error:
        print(f"plot: {error}", file=sys.stderr)
        return 2
    rows = [summary(name, run) for name, run in named.items()]
    if arguments.json:
        print(to_json({"figures": paths, "runs": rows}))
    else:
        _print(rows, paths)
    return 0


def _print(rows: list[dict[str, Any]], paths: list[Path]) -> None:
    print_table([map(_cell, row.values()) for row in rows], header=rows[0])
    print(f"Drawn in {' and '.join(map(str, paths))}")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)


if __name__ == "__main__":
    sys.exit(main())
