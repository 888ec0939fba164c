"""The figure of a race: the value over seconds and over gradients, on log scales."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from drawings import style

SECONDS = "seconds of training"
PASSES = "cost, in gradients of all training examples"
Curve = tuple[np.ndarray, np.ndarray, np.ndarray]  # seconds, passes, values; (marks,)


def draw(
    curves: Mapping[str, Curve],
    quantity: str,
    targets: Sequence[float],
    times: Sequence[float],
    prefix: Path,
) -> list[Path]:
    """PREFIX.png and PREFIX.svg; targets and times are dotted lines."""
    drawn = style.figure(11, 4.8)
    over_seconds, over_passes = drawn.subplots(1, 2, sharey=True)
    looks = {name: style.look(i) for i, name in enumerate(curves)}
    for name, (seconds, passes, values) in curves.items():
        _line(over_seconds, seconds, values, looks[name])
        _line(over_passes, passes, values, looks[name])
    for axes, label in ((over_seconds, SECONDS), (over_passes, PASSES)):
        axes.set_xlabel(label)
        for target in targets:
            axes.axhline(target, color="#444444", linewidth=1, linestyle=":")
        style.log_scale(axes, "x")
        style.log_scale(axes, "y")
    for time in times:
        over_seconds.axvline(time, color="#444444", linewidth=1, linestyle=":")
    over_seconds.set_ylabel(quantity)
    style.legend(drawn, looks)
    return style.save(drawn, prefix)


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, look: dict) -> None:
    """What a log scale can show: the start, at 0, is not."""
    shown = np.isfinite(y) & (x > 0) & (y > 0)
    axes.plot(x[shown], y[shown], linewidth=1.6, **look)
