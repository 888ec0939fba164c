"""Compare runs: losses and figures against steps, time and cost, and what led to them.

    python tools/plot.py RUN_DIR... [--out PREFIX] [--json] [--config CONFIG.py]

Draws PREFIX.png and PREFIX.svg, one curve for each run. Bold lines are running medians
over 2 % of a run's steps, faint ones every step; values that are not finite are left
out, and so is a panel for which no run has values. Cost is counted in gradients: see
gradient_equivalents in tools/toolkit/recorded.py.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from drawings import style
from hfdist.errors import UsageError
from hfdist.runs.config import load
from hfdist.runs.progress import print_table, words
from toolkit import command_line
from toolkit.recorded import CONFIG_HELP, Run, gradient_equivalents, read

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


def figures_of(runs: Sequence[Run]) -> list[str]:
    """What any of the runs reports of its evaluations; the loss, if none does."""
    figures = {name for run in runs for name in run.figures} - AXES.keys()
    return sorted(figures) or ["loss"]


def summary(name: str, run: Run, figures: Sequence[str]) -> dict[str, Any]:
    """A run in one row."""
    return {
        "run": name,
        "steps": run.steps,
        "training loss of the last epoch": run.train_loss,
        **{f"test {words(figure)}": _last(run, figure) for figure in figures},
        "training seconds": run.seconds,
        "cost in gradients": float(run.train["cost"][-1]),
        "diverged": run.diverged,
    }


def _last(run: Run, figure: str) -> float | None:
    values = run.test.get(figure, np.zeros(0))
    return float(values[-1]) if len(values) else None


def draw(named: dict[str, Run]) -> style.Figure:
    """All panels that have something to show. Raises UsageError if none has."""
    rows = [
        [("loss", x) for x in AXES if _has(named, "loss")],
        *([(f"test {figure}", x) for x in AXES] for figure in _evaluated(named)),
        [(quantity, "step") for quantity in DIAGNOSTICS if _has(named, quantity)],
    ]
    rows = [row for row in rows if row]
    if not rows:
        raise UsageError("no run has a finite value to draw")
    drawn = style.figure(12, 3.3 * len(rows) + 0.6)
    grid = drawn.add_gridspec(len(rows), 12)  # columns for 1, 2, 3 or 4 panels
    for i, row in enumerate(rows):
        width = 12 // len(row)
        for j, (quantity, x) in enumerate(row):
            axes = drawn.add_subplot(grid[i, j * width : (j + 1) * width])
            _panel(axes, named, quantity, x)
    looks = {
        f"{name} (diverged)" if run.diverged else name: style.look(i)
        for i, (name, run) in enumerate(named.items())
    }
    style.legend(drawn, looks)
    drawn.supxlabel(NOTE, fontsize=9, color="#444444")
    return drawn


def _evaluated(named: dict[str, Run]) -> list[str]:
    runs = [run for run in named.values() if len(run.test["step"])]
    return figures_of(runs) if runs else []


def _has(named: dict[str, Run], quantity: str) -> bool:
    return any(_drawable(run, quantity) for run in named.values())


def _drawable(run: Run, quantity: str) -> bool:
    """Whether a run has the quantity: one that its method lacks is 0 or NaN."""
    values = run.train.get(quantity, np.zeros(1))
    return bool(np.any(np.isfinite(values) & (values != 0)))


def _panel(axes: Axes, named: dict[str, Run], quantity: str, x: str) -> None:
    figure = quantity.removeprefix("test ")
    for i, run in enumerate(named.values()):
        if figure != quantity and figure in run.test:
            style.line(axes, run.test[x], run.test[figure], style.look(i))
        elif _drawable(run, quantity):
            style.trace(axes, run.train[x], run.train[quantity], style.look(i))
    axes.set_xlabel(AXES[x])
    labels = {"loss": "training loss", **DIAGNOSTICS}
    axes.set_ylabel(labels.get(quantity, words(quantity)))
    low, high = axes.dataLim.intervaly
    if quantity in LOG or (figure != quantity and 0 < 10 * low < high):
        style.log_scale(axes, "y")
    ends = [run.train[x][-1] for run in named.values()]
    if x != "step" and max(ends) > 10 * min(ends):
        style.log_scale(axes, "x")
    if x == "cost":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def report(arguments: argparse.Namespace) -> dict[str, Any]:
    """All there is to say, ready for JSON; draws the figure."""
    if arguments.config:
        load(arguments.config)
    labels = names(arguments.run_dirs)
    runs = [with_cost(read(folder)) for folder in arguments.run_dirs]
    named = dict(zip(labels, runs, strict=True))
    paths = style.save(draw(named), arguments.out)
    figures = figures_of(runs)
    rows = [summary(name, run, figures) for name, run in named.items()]
    return {"figures": paths, "runs": rows}


def main() -> int:
    """Draw one comparison; exit code 2 for a caller's mistake."""
    parser = command_line.parser("Compare runs of `hfdist train`.")
    add = parser.add_argument
    add("run_dirs", nargs="+", type=Path, metavar="RUN_DIR")
    add("--out", type=Path, default=Path("comparison"), metavar="PREFIX")
    add("--config", type=Path, metavar="CONFIG.py", help=CONFIG_HELP)
    return command_line.run("plot", parser.parse_args(), report, _print)


def _print(said: dict[str, Any]) -> None:
    rows = said["runs"]
    print_table([row.values() for row in rows], header=rows[0], justify="right")
    print(f"Drawn in {' and '.join(map(str, said['figures']))}")


if __name__ == "__main__":
    sys.exit(main())
