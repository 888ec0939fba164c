"""hfdist.fit: curve fitting in the manner of scipy.optimize.curve_fit."""

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from hfdist.checks import Count, NonNegative, Positive, fitted
from hfdist.errors import UsageError
from hfdist.fitting.covariance import inverse
from hfdist.fitting.descent import descend
from hfdist.fitting.given import (
    blocks_of,
    bounds_of,
    check_model,
    for_each,
    not_finite,
    start_of,
)
from hfdist.fitting.normal import Form, Normal, normal_equations
from hfdist.fitting.result import Fit
from hfdist.pytree import PyTree


def fit(
    model: Callable[..., Any],
    x: PyTree,
    y: Any,
    p0: PyTree,
    sigma: Any = None,
    absolute_sigma: bool = False,
    bounds: Any = (-np.inf, np.inf),
    l2: Any = 0.0,
    *,
    mesh: Mesh | None = None,
    micro_batch_size: int = 65_536,
    tolerance: float = 1e-8,
    max_steps: int = 1_000,
) -> Fit:
    """Fit a model's params to data, by least squares between bounds.

        S(p) = Σ ((yᵢ - model(xᵢ, p)) / σᵢ)² + Σ μ p²,   low ≤ p ≤ high

    Levenberg-Marquardt with the exact Jacobian and MINPACK's scaling of the params, in
    float64 whatever `jax_enable_x64` says. The model is written in jax.numpy:
    model(x, a, b) for p0 = (1.0, 2.0) or a list, model(x, params) for another tree of
    numbers and arrays. x is an array of rows (B, …) or a tree of them, y an array
    (B, …).

    sigma: standard deviations of y, one or like y. By default they are relative, and
    the covariance is s² A⁻¹, A = Jᵀ J + diag(μ), s² = Σ ((y - model) / σ)² / (B - N);
    with `absolute_sigma` it is A⁻¹. It is infinite, with a warning, for a singular A.
    bounds: low and high, each one number, one a param, or a tree like p0. At a bound
    the covariance is that of the problem without it, as SciPy's.
    l2: μ, one number, one a param, or a tree like p0.
    mesh: whose devices share the rows.
    micro_batch_size: rows that a device takes at a time. More of them are read once a
    step, in order, from x and y on the host, which may be memory maps of files larger
    than memory; row i of the model must then depend on row i of x alone.
    tolerance: how near to the minimum the fit ends, in standard errors.

    Raises UsageError for data, params and a model that do not fit: see the messages.
    """
    size = fitted("micro_batch_size", micro_batch_size, Count)
    tolerance = fitted("tolerance", tolerance, Positive)
    max_steps = fitted("max_steps", max_steps, Count)
    form, p_N = start_of(p0)
    bounds_2N, mus_N = bounds_of(bounds, form, p_N), for_each("l2", l2, form)
    for mu in mus_N.tolist():
        fitted("l2", mu, NonNegative)
    blocks = blocks_of(x, y, sigma, form.size, size, mesh)
    freedom = blocks.y.size - form.size
    check_model(model, form, blocks)
    with jax.enable_x64(True):
        # What the devices hold at once is brought to them once.
        batches = [*blocks] if len(blocks.y) <= blocks.at_once else blocks
        of_data = partial(normal_equations, model, form, mesh, batches)

        def equations(p_N, basis_NN):
            return _penalised(of_data(p_N, basis_NN), mus_N, p_N, basis_NN)

        at = partial(equations, basis_NN=np.eye(form.size))
        start = at(p_N)
        if not np.isfinite(start.squares):
            raise UsageError(not_finite(blocks))
        found = descend(at, (p_N, start), bounds_2N, freedom, tolerance, max_steps)
        inverse_NN = inverse(
            lambda basis_NN: equations(found.p_N, basis_NN).matrix_NN,
            found.normal.matrix_NN,
        )
        total = _about_the_mean(mesh, batches)
    squares = found.normal.squares - float(mus_N @ found.p_N**2)
    if inverse_NN is None or not (freedom or absolute_sigma):
        warnings.warn(UNKNOWN, RuntimeWarning, stacklevel=2)
        covariance_NN = np.full((form.size, form.size), np.inf)
    else:
        covariance_NN = inverse_NN * (1 if absolute_sigma else squares / freedom)
    return Fit(
        params=form.tree_of(found.p_N),
        covariance=covariance_NN,
        standard_errors=form.tree_of(np.sqrt(np.diagonal(covariance_NN))),
        squares=squares,
        freedom=freedom,
        r_squared=1 - squares / total if total else np.nan,
        steps=found.steps,
        ending=found.ending,
        absolute_sigma=absolute_sigma,
    )


UNKNOWN = (
    "the data do not tell the params apart, or are no more than they: the covariance "
    "is infinite; fit fewer params, or give an l2"
)


def _penalised(
    data: Normal, mus_N: np.ndarray, p_N: np.ndarray, basis_NN: np.ndarray
) -> Normal:
    """The normal equations with Σ μ p² in S."""
    return data._replace(
        squares=data.squares + float(mus_N @ p_N**2),
        slope_N=data.slope_N + basis_NN.T @ (mus_N * p_N),
        matrix_NN=data.matrix_NN + basis_NN.T @ (mus_N[:, None] * basis_NN),
    )


def _level(x: PyTree, level: Any) -> Any:
    """The model that is one constant."""
    del x
    return level


def _about_the_mean(mesh: Mesh | None, batches: Iterable[Any]) -> float:
    """Σ ((yᵢ - mean) / σᵢ)², by fitting a constant twice: from afar digits are lost."""
    form = Form(jax.tree.structure(0.0), ((),))
    at = partial(normal_equations, _level, form, mesh, batches)
    normal = at(np.zeros(1), np.eye(1))
    normal = at(-normal.slope_N / normal.matrix_NN[0], np.eye(1))
    return normal.squares - float(normal.slope_N[0] ** 2 / normal.matrix_NN[0, 0])
