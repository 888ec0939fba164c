"""Levenberg-Marquardt between bounds, on the host, from the normal equations alone.

    (A + λ D²) s = -g,   p ← min(max(p + s, low), high)

D² is the greatest diagonal of A so far, as in MINPACK (Moré 1978): λ then weighs all
params alike, however far apart they are. It follows ρ by Nielsen's rule, from ‖D⁻¹ g‖ /
‖D p‖, by which the first step is no longer than p. A param at a bound is held while S
falls beyond it (the projected method of Kanzow, Yamashita & Fukushima 2004).

Were the model linear, S would fall by δ² = gᵀ A⁻¹ g: δ² / N over S / (B - N) is the
square of the distance to the minimum in standard errors, by which the end is known
(Bates & Watts 1981).

N: params, F: those that are free.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hfdist.damping.nielsen import nielsen
from hfdist.fitting.normal import Normal
from hfdist.methods.measured import ROUNDINGS
from hfdist.outcome import Outcome, Refusal, reduction_ratio

REST = 1e-3  # λ that it falls back to where steps tell nothing: D⁻¹ A D⁻¹ is about 1
# D may be of long ago and beyond all measure now: λ has no least but 0.
BOUNDS = (float(np.finfo(float).tiny), 1e20)
QUIET = 5  # steps without progress that change S by rounding alone


class Ending(IntEnum):
    """Why a fit ended."""

    CONVERGED = 0
    """The minimum is nearer than `tolerance` standard errors, or than S can tell."""
    NO_PROGRESS = 1
    """Steps change the sum of squares by its rounding alone: near the minimum of an
    ill-conditioned problem, or on a plateau."""
    STEPS_USED_UP = 2
    """The minimum was not reached within `max_steps`."""


class Descent(NamedTuple):
    """Where it came to, and how."""

    p_N: np.ndarray
    normal: Normal  # there
    steps: int  # tried
    ending: Ending


class Model(NamedTuple):
    """The quadratic model of S around a point, in the free params."""

    free_F: np.ndarray  # which params they are
    point_F: np.ndarray  # p
    slope_F: np.ndarray  # g
    matrix_FF: np.ndarray  # A
    squared_F: np.ndarray  # D²

    @property
    def first_damping(self) -> float:
        """‖D⁻¹ g‖ / ‖D p‖."""
        length = np.linalg.norm(np.sqrt(self.squared_F) * self.point_F)
        slope = np.linalg.norm(self.slope_F / _roots(self.squared_F))
        return float(slope / length) if length else REST

    def step(self, damping: float) -> np.ndarray:
        """-(A + λ D²)⁻¹ g, (F,), and none along what the matrix is singular in."""
        matrix_FF = self.matrix_FF + np.diag(damping * self.squared_F)
        scale_F = _roots(np.diagonal(matrix_FF))
        even_FF = matrix_FF / np.outer(scale_F, scale_F)
        return -np.linalg.lstsq(even_FF, self.slope_F / scale_F)[0] / scale_F

    @property
    def decrease(self) -> float:
        """δ² = gᵀ A⁻¹ g."""
        return float(-self.slope_F @ self.step(0))


def _roots(squares_F: np.ndarray) -> np.ndarray:
    """Lengths of columns; those on which nothing hangs, with a slope of 0, have any."""
    return np.sqrt(np.where(squares_F > 0, squares_F, 1))


def descend(
    equations: Callable[[np.ndarray], Normal],
    start: tuple[np.ndarray, Normal],
    bounds_2N: np.ndarray,
    freedom: int,
    tolerance: float,
    max_steps: int,
) -> Descent:
    """Minimise S from a point where it is finite, one pass over the data a step.

    freedom: B - N.
    """
    (p_N, normal), greatest_N = start, np.zeros(len(start[0]))
    damping, refused, quiet, model = None, np.int32(0), 0, None
    for steps in range(max_steps + 1):
        if model is None:
            greatest_N = np.maximum(greatest_N, np.diagonal(normal.matrix_NN))
            model = _model(normal, p_N, bounds_2N, greatest_N)
            near = tolerance**2 * len(p_N) * normal.squares / max(freedom, 1)
            if model.decrease <= near:
                return Descent(p_N, normal, steps, Ending.CONVERGED)
        if quiet == QUIET:
            least = model.decrease <= normal.rounding
            ending = Ending.CONVERGED if least else Ending.NO_PROGRESS
            return Descent(p_N, normal, steps, ending)
        if steps == max_steps:
            break
        damping = np.float64(model.first_damping if damping is None else damping)
        tried_N = p_N.copy()
        tried_N[model.free_F] += model.step(damping)
        tried_N = np.clip(tried_N, *bounds_2N)
        there, s_N = equations(tried_N), tried_N - p_N
        predicted = -s_N @ (2 * normal.slope_N + normal.matrix_NN @ s_N)
        actual = np.float64(normal.squares - there.squares)
        resolution = np.float64(ROUNDINGS * (normal.rounding + there.rounding))
        rho, refused, damping = jax.device_get(
            _judged(damping, actual, predicted, resolution, refused)
        )
        quiet = 0 if rho > 0 else quiet + bool(np.isnan(rho))
        if not refused:
            p_N, normal, model = tried_N, there, None
    return Descent(p_N, normal, max_steps, Ending.STEPS_USED_UP)


def _model(
    normal: Normal, p_N: np.ndarray, bounds_2N: np.ndarray, greatest_N: np.ndarray
) -> Model:
    low_N, high_N = bounds_2N
    held_N = (p_N <= low_N) & (normal.slope_N > 0)
    held_N |= (p_N >= high_N) & (normal.slope_N < 0)
    free_F = np.flatnonzero(~held_N)
    matrix_FF = normal.matrix_NN[np.ix_(free_F, free_F)]
    return Model(
        free_F, p_N[free_F], normal.slope_N[free_F], matrix_FF, greatest_N[free_F]
    )


@jax.jit
def _judged(
    damping: Array, actual: Array, predicted: Array, resolution: Array, refused: Array
) -> tuple[Array, Array, Array]:
    """ρ of a step, how many in a row are refused with it, and the next λ."""
    rho = reduction_ratio(actual, predicted, resolution)
    refused = jnp.where(rho == -jnp.inf, refused + 1, 0)
    refusal = jnp.where(refused > 0, Refusal.LOSS_ROSE, Refusal.NONE)
    outcome = Outcome(rho, refusal, refused, jnp.float64(REST), BOUNDS)
    return rho, refused, nielsen(damping, outcome)
