"""Figures of solutions: u and its error as maps, and the error over time."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from drawings import style

DECADES = 1e-4  # of the largest error, the least that has a colour of its own


class Plane(NamedTuple):
    """A solution on a plane; row i, column j: at (first[j], second[i])."""

    first: np.ndarray  # (n,)
    second: np.ndarray  # (n,)
    u: np.ndarray  # (n, n)
    solution: np.ndarray  # (n, n), u*
    names: tuple[str, ...]  # of the two axes

    @property
    def error(self) -> np.ndarray:
        """|u - u*|, (n, n)."""
        return np.abs(self.u - self.solution)

    @property
    def relative_error(self) -> np.floating:
        """‖u - u*‖ / ‖u*‖."""
        return np.linalg.norm(self.error) / np.linalg.norm(self.solution)


def draw(
    plane: Plane, seconds: np.ndarray, errors: np.ndarray, prefix: Path
) -> list[Path]:
    """PREFIX.png and PREFIX.svg; errors: relative ones, after so many seconds."""
    drawn = style.figure(12, 3.4)
    of_u, of_error, over_time = drawn.subplots(1, 3)
    largest = plane.error.max() or 1.0
    scale = LogNorm(DECADES * largest, largest)
    _map(of_u, plane, plane.u, "$u$", cmap="viridis")
    error = np.maximum(plane.error, DECADES * largest)
    _map(of_error, plane, error, "$|u - u^*|$", cmap="magma", norm=scale)
    style.line(over_time, seconds, errors, style.look(0))
    over_time.set(xlabel="seconds of training", ylabel="relative error")
    for which in "xy" if len(errors) else "":  # a run may have measured none yet
        style.log_scale(over_time, which)
    return style.save(drawn, prefix)


def _map(
    axes: Axes, plane: Plane, values: np.ndarray, title: str, **looks: Any
) -> None:
    at = plane.first, plane.second, values
    colours = axes.pcolormesh(*at, shading="nearest", rasterized=True, **looks)
    axes.figure.colorbar(colours, ax=axes)
    horizontal, vertical = (f"${name}$" for name in plane.names)
    axes.set(title=title, xlabel=horizontal, ylabel=vertical)
    axes.grid(False)
