"""The damping rule and the reduction ratio, by hand."""

import jax.numpy as jnp
import pytest

from hfdist.damping import levenberg_marquardt, reduction_ratio

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("rho", "factor"),
    [
        (1.0, 2 / 3),
        (0.76, 2 / 3),
        (0.75, 1),
        (0.5, 1),
        (0.25, 1),
        (0.24, 3 / 2),
        (-5.0, 3 / 2),
        (-INF, 3 / 2),
        (NAN, 3 / 2),
    ],
)
def test_levenberg_marquardt(rho, factor):
    assert levenberg_marquardt(jnp.float64(6.0), jnp.float64(rho)) == 6 * factor


@pytest.mark.parametrize(
    ("actual", "predicted", "rho"),
    [
        (0.3, 0.4, 0.75),
        (0.0, 0.4, 0.0),
        (-0.1, 0.4, -INF),  # the loss rose
        (0.3, -0.4, -INF),  # the model promised no decrease
        (0.3, 0.0, -INF),
        (NAN, 0.4, -INF),
        (-INF, 0.4, -INF),
        (0.3, INF, 0.0),
        (0.3, NAN, -INF),
    ],
)
def test_reduction_ratio(actual, predicted, rho):
    ratio = reduction_ratio(jnp.float64(actual), jnp.float64(predicted))
    assert ratio == pytest.approx(rho)
