"""The damping rule and the reduction ratio, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from cases import loop
from hfdist import HessianFree, Newton, Problem, losses
from hfdist.damping.constant import constant
from hfdist.damping.levenberg_marquardt import levenberg_marquardt
from hfdist.damping.next_batch import next_batch
from hfdist.damping.nielsen import nielsen
from hfdist.outcome import Outcome, Refusal, not_finite, reduction_ratio

INF, NAN = float("inf"), float("nan")


BOUNDS = (1e-3, 1e3)


def after(rule, damping, rho=NAN, refusal=Refusal.NONE, refused=0, first=6.0, rate=NAN):
    step = jnp.float64(rho), jnp.int32(refusal), jnp.int32(refused)
    outcome = Outcome(*step, jnp.float64(first), BOUNDS, jnp.float64(rate))
    return float(rule(jnp.float64(damping), outcome))


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
        (NAN, 1),  # no evidence
    ],
)
def test_levenberg_marquardt(rho, factor):
    assert after(levenberg_marquardt, 6.0, rho) == 6 * factor


@pytest.mark.parametrize(
    ("rho", "factor"),
    [
        (3.0, 1 / 3),
        (1.0, 1 / 3),  # 1 - 1 is less
        (0.9, 1 - 0.8**3),
        (0.5, 1),
        (0.25, 1.125),
        (0.0, 2),
        (-INF, 2),  # taken, though the solver met negative curvature
        (NAN, 1),  # no evidence
    ],
)
def test_nielsen(rho, factor):
    assert after(nielsen, 6.0, rho) == pytest.approx(6 * factor, rel=1e-15)


@pytest.mark.parametrize(
    ("rho", "rate", "damping", "expected"),
    [
        (1.0, 0.6, 2.0, 2.0),  # the aim
        (1.0, 1.1, 2.0, 2 * np.exp(-0.2)),
        (1.0, 9.0, 2.0, 2 * np.exp(-0.4)),
        (NAN, INF, 2.0, 2 * np.exp(-0.4)),
        (1.0, 0.1, 2.0, 2 * np.exp(0.2)),
        (1.0, -INF, 2.0, 2 * np.exp(0.4)),
        (1.0, -INF, 5.0, 6.0),  # not beyond the first
        (1.0, 9.0, 7e-3, 6e-3),  # nor below a thousandth of it
        (1.0, -INF, 8.0, 8.0),  # raised by refusals before
        (1.0, 1.1, 8.0, 8 * np.exp(-0.2)),
        (1.0, NAN, 2.0, 2.0),  # no evidence
        (1.0, NAN, 8.0, 6.0),  # back to the first, from above
        (0.2, 9.0, 5.0, 7.5),  # the model fails
        (-INF, 9.0, 5.0, 7.5),
        (0.25, 0.6, 5.0, 5.0),
    ],
)
def test_next_batch(rho, rate, damping, expected):
    found = after(next_batch, damping, rho, rate=rate)
    assert found == pytest.approx(expected, rel=1e-12)


def test_next_batch_raises_after_refused_steps_by_ever_more():
    for refused in (1, 3):
        raised = after(next_batch, 5.0, -INF, Refusal.LOSS_ROSE, refused, rate=9.0)
        assert raised == pytest.approx(5 * 1.5**refused)
    assert after(next_batch, 3.0, -INF, Refusal.LOSS_NOT_FINITE, 5, rate=0.1) == 3.0


def test_nielsen_doubles_what_it_raises_by_and_keeps_its_bounds():
    for refused in (1, 2, 5):
        raised = after(nielsen, 0.01, -INF, Refusal.LOSS_ROSE, refused)
        assert raised == 0.01 * 2**refused
    assert after(nielsen, 1.2e-3, 1.0) == 1e-3
    assert after(nielsen, 900.0, -INF, Refusal.LOSS_ROSE) == 1e3
    assert after(nielsen, 60.0) == 20.0  # back to the first, from above
    assert after(nielsen, 0.1) == 0.1
    assert after(nielsen, 3.0, -INF, Refusal.LOSS_NOT_FINITE, 5) == 3.0


@pytest.mark.parametrize(("refused", "factor"), [(1, 1.5), (2, 1.5**2), (9, 1.5**9)])
def test_steps_refused_in_a_row_raise_damping_by_ever_more(refused, factor):
    raised = after(levenberg_marquardt, 0.01, -INF, Refusal.LOSS_ROSE, refused)
    assert raised == pytest.approx(0.01 * factor)


def test_damping_stays_within_its_bounds():
    assert after(levenberg_marquardt, 1.2e-3, 1.0) == 1e-3
    assert after(levenberg_marquardt, 900.0, -INF) == 1e3
    huge = after(levenberg_marquardt, 1.0, -INF, Refusal.STEP_NOT_FINITE, 10_000)
    assert huge == 1e3


def test_without_evidence_damping_falls_back_to_the_first_from_above_alone():
    assert after(levenberg_marquardt, 12.0) == 8.0
    assert after(levenberg_marquardt, 6.1) == 6.0
    assert after(levenberg_marquardt, 0.1) == 0.1


@pytest.mark.parametrize(
    "refusal", [Refusal.LOSS_NOT_FINITE, Refusal.GRADIENT_NOT_FINITE]
)
def test_a_batch_that_is_not_finite_is_no_evidence_of_damping(refusal):
    assert after(levenberg_marquardt, 3.0, -INF, refusal, 5) == 3.0


@pytest.mark.parametrize("refusal", [Refusal.LOSS_NOT_FINITE, Refusal.STEP_NOT_FINITE])
def test_constant_damping_is_raised_after_a_refusal_and_falls_back(refusal):
    raised = after(constant, 6.0, refusal=refusal)
    assert raised == 9.0
    assert after(constant, raised) == 6.0
    assert after(constant, 6.0) == 0.0  # what is not raised is the setting's


@pytest.mark.parametrize(
    ("norms", "refusal"),
    [
        ((1.0, 1.0, 1.0), Refusal.NONE),
        ((NAN, NAN, NAN), Refusal.LOSS_NOT_FINITE),
        ((INF, 1.0, 1.0), Refusal.LOSS_NOT_FINITE),
        ((1.0, NAN, NAN), Refusal.GRADIENT_NOT_FINITE),
        ((1.0, 1.0, INF), Refusal.STEP_NOT_FINITE),
    ],
)
def test_the_first_that_is_not_finite_is_named(norms, refusal):
    assert not_finite(*map(jnp.float64, norms)) == refusal


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
        (0.01, 0.02, NAN),  # rounding, of a resolution of 0.02
        (-0.02, 0.001, NAN),
        (0.0, 0.0, NAN),
        (-0.03, 0.001, -INF),
    ],
)
def test_reduction_ratio(actual, predicted, rho):
    numbers = (jnp.float64(x) for x in (actual, predicted, 0.02))
    assert reduction_ratio(*numbers) == pytest.approx(rho, nan_ok=True)


@pytest.mark.parametrize("actual", [NAN, -INF])
def test_a_loss_that_is_not_finite_is_evidence_whatever_the_resolution(actual):
    numbers = (jnp.float64(x) for x in (actual, 0.4, INF))
    assert reduction_ratio(*numbers) == -INF


TIMES = np.linspace(0, 4, 30)
DECAYS = {"inputs": TIMES[:, None], "targets": 5 * np.exp(-1.5 * TIMES)[:, None]}
FIT = Problem(
    lambda w, batch: w["height"] * jnp.exp(-w["rate"] * batch["inputs"]),
    losses.squared_error,
)


@pytest.mark.parametrize("make", [Newton, HessianFree])
def test_on_a_whole_batch_nielsen_is_there_in_fewer_steps(make):
    """Two params of a decay without noise: 5 and 3/2."""
    steps = {}
    for rule in ("levenberg_marquardt", "nielsen"):
        method = make(
            damping=1.0,
            learning_rate=1.0,
            curvature="gauss_newton",
            damping_rule=rule,
            damping_bounds=(1e-12, 1e12),
        )
        start = {"height": jnp.float64(1.0), "rate": jnp.float64(0.1)}
        params, infos = loop(method.build(FIT), start, DECAYS, steps=60)
        assert params["height"] == pytest.approx(5, rel=1e-6)
        assert params["rate"] == pytest.approx(1.5, rel=1e-6)
        steps[rule] = np.argmax([info.loss < 1e-15 for info in infos])
    assert steps["nielsen"] < 0.7 * steps["levenberg_marquardt"], steps
