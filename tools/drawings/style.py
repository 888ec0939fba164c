"""How the tools draw: one style, colours for the colour-blind, PNG beside SVG.

Figures are made without pyplot, so that nothing is global and no display is needed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hfdist.errors import UsageError

# Okabe & Ito 2008, "Color universal design"; without yellow, too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (9, 2)))
SMOOTHED = 0.02  # of a run's steps, the window of a running median
FEW = 30  # points, up to which each gets a mark
SETTINGS: Any = {
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.hashsalt": "hfdist",  # the same figure is the same file
}
matplotlib.rcParams.update(SETTINGS)


def look(index: int) -> dict[str, Any]:
    """Colour and dashes of the index-th curve; 35 differ."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index % len(DASHES)],
    }


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that makes room for its labels and legend."""
    return Figure(figsize=(width, height), layout="constrained")


def running_median(values: np.ndarray) -> np.ndarray:
    """Medians over centred windows of 2 % of the values.

    Windows are narrower near the start, not to hide a steep descent, and end with the
    last value.
    """
    half = round(SMOOTHED * len(values)) // 2
    reach = [min(half, i) for i in range(len(values))]
    return np.array([np.median(values[i - r : i + r + 1]) for i, r in enumerate(reach)])


def trace(axes: Axes, x: np.ndarray, y: np.ndarray, style: dict[str, Any]) -> None:
    """The finite values of y, faint, under their running median."""
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if not len(x):
        return
    faint = {"color": style["color"], "alpha": 0.25, "zorder": 1.5}
    axes.plot(x, y, linewidth=0.6, rasterized=True, **faint)
    line(axes, x, running_median(y), style)


def line(axes: Axes, x: np.ndarray, y: np.ndarray, style: dict[str, Any]) -> None:
    """A curve whose points are marked if they are few."""
    marker = "o" if len(x) <= FEW else ""
    axes.plot(x, y, marker=marker, markersize=4, linewidth=1.6, **style)


def band(
    axes: Axes, x: np.ndarray, curves: Sequence[np.ndarray], style: dict[str, Any]
) -> None:
    """The mean of the curves over their range from least to greatest."""
    low, high = np.min(curves, axis=0), np.max(curves, axis=0)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.25, linewidth=0)
    line(axes, x, np.mean(curves, axis=0), style)


def log_scale(axes: Axes, which: str) -> None:
    """A log scale on "x" or "y", ticked in plain numbers; call it after drawing."""
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    axes.set(**{f"{which}scale": "log"})
    low, high = sorted(axis.get_view_interval())
    subs = (1, 2, 5) if high < 300 * low else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend(drawn: Figure, labels: dict[str, dict[str, Any]]) -> None:
    """The curves' names and looks above the panels, whether or not each was drawn."""
    handles = [
        Line2D([], [], linewidth=1.6, label=label, **style)
        for label, style in labels.items()
    ]
    columns = min(len(labels), max(1, int(110 / (max(map(len, labels)) + 8))))
    said = drawn.legend(handles=handles, loc="outside upper center", ncols=columns)
    for text in said.get_texts():
        text.set_parse_math(False)  # a $ in a folder's name is no formula


def save(drawn: Figure, prefix: Path) -> list[Path]:
    """PREFIX.png and PREFIX.svg. Raises UsageError if they cannot be written."""
    if prefix.name in ("", ".."):
        raise UsageError(f"--out {prefix} is a folder: add a name for the figures")
    paths = [prefix.with_name(f"{prefix.name}.{kind}") for kind in ("png", "svg")]
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(paths[0])
        drawn.set_layout_engine("none")  # laid out now, for both; it takes as long
        drawn.savefig(paths[1], metadata={"Date": None})
    except OSError as error:
        raise UsageError(
            f"{prefix} cannot be written ({error.strerror}): give --out another place"
        ) from None
    return paths
