"""Figures of spectra: where the eigenvalues lie, and how that changes in training."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, PercentFormatter, SymmetricalLogLocator

from drawings import style
from hfdist.quadratics import Curvature
from hfdist.spectrum import Spectrum

NAMES = {"hessian": "Hessian", "gauss_newton": "Gauss-Newton matrix"}
LOOKS = {name: style.look(i) for i, name in enumerate(NAMES)}
# Of the largest |λ|; below it the axis is linear.
LINEAR = 1e-6
POINTS, FEWEST = 2000, 0.1
AT_TOP, AT_LEFT = ("data", "axes fraction"), ("axes fraction", "data")


class Found(NamedTuple):
    """The spectrum of one matrix at one checkpoint."""

    step: int
    curvature: Curvature
    spectrum: Spectrum


def draw(found: Sequence[Found], damping: float, prefix: Path) -> list[Path]:
    """PREFIX.png and PREFIX.svg; several steps have two more panels."""
    steps = sorted({one.step for one in found})
    last = [one for one in found if one.step == steps[-1]]
    if len(steps) == 1:
        drawn = style.figure(10, 4.5)
        _density(drawn.subplots(), last, damping)
    else:
        drawn = style.figure(10, 8)
        panels = drawn.subplot_mosaic([["density"] * 2, ["extremes", "shares"]])
        _density(panels["density"], last, damping)
        _extremes(panels["extremes"], found, damping)
        _shares(panels["shares"], found)
    style.legend(drawn, {NAMES[one.curvature]: LOOKS[one.curvature] for one in last})
    return style.save(drawn, prefix)


def _density(axes: Axes, last: Sequence[Found], damping: float) -> None:
    """How many eigenvalues lie where, on an axis linear in arsinh(λ / scale)."""
    spectra = [one.spectrum for one in last]
    scale = max(max(LINEAR * abs(s.top_K[0]), s.zero_below) for s in spectra)
    ends = [-damping] + [end for one in last for end in _ends(one)]
    low, high = np.arcsinh(min(ends) / scale) - 1, np.arcsinh(max(ends) / scale) + 1
    x_G = np.linspace(low, high, POINTS)
    for _, curvature, spectrum in last:
        counts_G = spectrum.counts_V.sum() * spectrum.density(x_G, scale)
        counts_G[counts_G < FEWEST] = np.nan
        axes.plot(scale * np.sinh(x_G), counts_G, linewidth=1.6, **LOOKS[curvature])
    if damping:
        axes.axvline(-damping, color="black", linewidth=1)
        axes.annotate(f" −λ = −{damping:g}", (-damping, 0.95), xycoords=AT_TOP)
    axes.set_xscale("asinh", linear_width=scale)
    axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=30 * scale))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yscale("log")
    axes.set_ylim(bottom=FEWEST)
    methods = " and ".join(sorted({s.method for s in spectra}))
    axes.set(
        title=f"step {last[0].step:,} ({methods})",
        xlabel=f"eigenvalue (linear below about {scale:.0e})",
        ylabel="eigenvalues per factor e",
    )


def _extremes(axes: Axes, found: Sequence[Found], damping: float) -> None:
    """Largest and smallest eigenvalue over the steps."""
    for curvature, curve in _curves(found).items():
        steps = np.array([one.step for one in curve])
        ends = np.array([_ends(one) for one in curve])
        for end in ends.T:
            style.line(axes, steps, end, LOOKS[curvature])
    if damping:
        axes.axhline(-damping, color="black", linewidth=1)
        axes.annotate(
            f" −λ = −{damping:g}",
            (0, -damping),
            xycoords=AT_LEFT,
            xytext=(0, 3),
            textcoords="offset points",
        )
    axes.set_yscale("symlog", linthresh=1e-2)
    axes.set(xlabel="step", ylabel="largest and smallest eigenvalue")


def _shares(axes: Axes, found: Sequence[Found]) -> None:
    """The fractions of negative eigenvalues, dots, and of zeros, faint squares."""
    for curvature, curve in _curves(found).items():
        steps = np.array([one.step for one in curve])
        negative = np.array([one.spectrum.negative_share for one in curve])
        style.line(axes, steps, negative, LOOKS[curvature])
        zero = [one.spectrum.zeros / one.spectrum.counts_V.sum() for one in curve]
        axes.plot(steps, zero, alpha=0.4, marker="s", markersize=4, **LOOKS[curvature])
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylim(bottom=0)
    axes.set(xlabel="step", ylabel="share: negative ●, zero ■")


def _ends(one: Found) -> tuple[float, float]:
    return one.spectrum.smallest, one.spectrum.largest


def _curves(found: Sequence[Found]) -> dict[str, list[Found]]:
    """The spectra of each matrix by step."""
    ordered = sorted(found, key=lambda one: one.step)
    return {
        name: curve
        for name in NAMES
        if (curve := [one for one in ordered if one.curvature == name])
    }
