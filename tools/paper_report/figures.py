"""The paper's Figures 2 to 5 from our runs: means over the seeds and their ranges."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from drawings import style
from paper_report.comparison import PAPER
from toolkit.recorded import Run

# The methods of each figure, and its panels.
LOSS = (("loss", "step"), ("loss", "seconds"))
FIGURES = {
    "figure2": (("sgd", "newton"), LOSS),
    "figure3": (("sgd", "damped_newton"), (*LOSS, ("accuracy", "epoch"))),
    "figure4": (("sgd", "hf_newton"), (*LOSS, ("accuracy", "epoch"))),
    "figure5": (
        ("sgd", "hf_newton", "hf_gauss_newton"),
        (*LOSS, ("accuracy", "epoch")),
    ),
}
LABELS = {
    "loss": "training loss,\nrunning median over 2 % of the steps",
    "accuracy": "test accuracy",
    "step": "step",
    "seconds": "seconds of training",
    "epoch": "epoch",
}
LOOKS = {config: style.look(i) for i, config in enumerate(PAPER)}


def draw(
    runs: Mapping[str, Sequence[Run]], per_epoch: int, folder: Path
) -> dict[str, tuple[Path, str]]:
    """Writes each figure as PNG and SVG; its PNG and caption, by its name."""
    drawn = {}
    for number, (name, (configs, panels)) in enumerate(FIGURES.items(), 2):
        figure = style.figure(4.2 * len(panels), 3.8)
        for axes, (quantity, x) in zip(
            figure.subplots(1, len(panels)), panels, strict=True
        ):
            for config in configs:
                _curve(axes, runs[config], per_epoch, quantity, x, config)
            _finish(axes, [runs[c] for c in configs], quantity, x)
        style.legend(figure, {_label(c, runs[c]): LOOKS[c] for c in configs})
        png, _ = style.save(figure, folder / name)
        methods = ", ".join(PAPER[config].name for config in configs)
        drawn[name] = png, f"The paper's Figure {number}: {methods}."
    return drawn


def _label(config: str, runs: Sequence[Run]) -> str:
    diverged = any(run.diverged for run in runs)
    return PAPER[config].name + (" (diverged)" if diverged else "")


def _curve(
    axes: Axes,
    runs: Sequence[Run],
    per_epoch: int,
    quantity: str,
    x: str,
    config: str,
) -> None:
    """One method: as far as its shortest seed goes."""
    tables = [run.test if quantity == "accuracy" else run.train for run in runs]
    length = min(len(table["step"]) for table in tables)
    values = [table[quantity][:length] for table in tables]
    if quantity == "loss":
        values = [style.running_median(v) for v in values]
    steps = tables[0]["step"][:length]
    places = {
        "step": steps,
        "epoch": steps / per_epoch,
        "seconds": np.mean([table["seconds"][:length] for table in tables], axis=0),
    }
    style.band(axes, places[x], values, LOOKS[config])


def _finish(axes: Axes, shown: Sequence[Sequence[Run]], quantity: str, x: str) -> None:
    axes.set_xlabel(LABELS[x])
    axes.set_ylabel(LABELS[quantity])
    if quantity == "loss":
        style.log_scale(axes, "y")
    ends = [run.seconds for runs in shown for run in runs]
    if x == "seconds" and max(ends) > 10 * min(ends):
        style.log_scale(axes, "x")
