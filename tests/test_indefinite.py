"""The exact Hessian, indefinite, with little damping that adapts: no worse step.

Every step of a run is judged anew by numpy in float64.
"""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hfdist import CG, HessianFree, Newton, Problem, Refusal, losses
from hfdist.tasks.idx import IDX
from quick import mostly_slow

SOLVERS = ("cg", "dense")
RULES = ("levenberg_marquardt", "nielsen")


def methods(rule):
    settings = {
        "curvature": "hessian",
        "damping": 1e-3,
        "learning_rate": 1.0,
        "damping_rule": rule,
    }
    return {
        "cg": HessianFree(**settings, cg=CG(max_steps=30)),
        "dense": Newton(**settings, tries=1),  # to see what is refused
    }


def small_digits():
    """300 images of MNIST, 28 x 28 averaged to 7 x 7 (300, 49), and their labels."""
    entries = IDX().examples("train").entries
    pixels_BHW = np.asarray(entries["inputs"][:300], float).reshape(300, 28, 28) / 255
    inputs_BD = pixels_BHW.reshape(300, 7, 4, 7, 4).mean((2, 4)).reshape(300, 49)
    return inputs_BD, np.asarray(entries["labels"][:300], int)


def predict(params, batch):
    return jnp.tanh(batch["inputs"] @ params["first"]) @ params["second"]


def numpy_loss(params, batch):
    """The mean softmax cross-entropy of that network."""
    first, second = (np.asarray(params[k], float) for k in ("first", "second"))
    z_BC = np.tanh(np.asarray(batch["inputs"], float) @ first) @ second
    labels_B = np.asarray(batch["labels"])
    picked_B = np.take_along_axis(z_BC, labels_B[:, None], 1)[:, 0]
    return np.mean(np.log(np.exp(z_BC).sum(1)) - picked_B)


def judged(method, problem, params, batch, loss, steps, rounding):
    """The losses after each step, and the infos; each step held against `loss`."""
    optimizer = method.build(problem)
    update = jax.jit(lambda s, p: optimizer.update(None, s, p, batch=batch))
    state, infos, values = optimizer.init(params), [], [loss(params, batch)]
    for _ in range(steps):
        before = params
        updates, state = update(state, params)
        params = optax.apply_updates(params, updates)
        values.append(loss(params, batch))
        if state.info.accepted:
            assert state.info.refusal == Refusal.NONE
            assert np.isfinite(values[-1])
            assert values[-1] <= values[-2] + rounding
            assert state.info.loss_after == pytest.approx(values[-1], abs=rounding)
        else:
            assert state.info.refusal != Refusal.NONE
            assert jax.tree.all(jax.tree.map(np.array_equal, params, before))
        infos.append(state.info)
    return values, infos


@pytest.mark.parametrize(
    ("solver", "rule", "dtype"),
    mostly_slow(
        list(product(SOLVERS, RULES, [jnp.float32, jnp.float64])),
        [("cg", rule, jnp.float64) for rule in RULES],
    ),
)
def test_a_network_trains_and_no_step_is_a_worse_one(solver, rule, dtype):
    inputs_BD, labels_B = small_digits()
    batch = {"inputs": jnp.asarray(inputs_BD, dtype), "labels": jnp.asarray(labels_B)}
    rng = np.random.default_rng(0)
    params = {
        "first": jnp.asarray(rng.normal(size=(49, 8)) / 4, dtype),
        "second": jnp.asarray(rng.normal(size=(8, 10)), dtype),
    }
    problem = Problem(predict, losses.softmax_cross_entropy)
    rounding = 100 * float(jnp.finfo(dtype).eps)
    values, infos = judged(
        methods(rule)[solver], problem, params, batch, numpy_loss, 60, rounding
    )
    assert any(info.indefinite for info in infos)
    assert any(not info.accepted for info in infos)
    assert values[-1] < 0.1 * values[0]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_saddle_is_left_for_a_minimum(solver, rule):
    """f = x² - y² + y⁴: -1/4 at y = ±√½, from beside the saddle at 0.

    The dense solve goes to the saddle first, and takes half of the steps to leave it.
    """

    def value(p):
        return p["x"] ** 2 - p["y"] ** 2 + p["y"] ** 4

    problem = Problem(
        lambda p, batch: jnp.full((len(batch["inputs"]), 1), 1.0) * value(p),
        lambda z_BC, batch: z_BC[:, 0],
    )
    params = {"x": jnp.float64(1.0), "y": jnp.float64(0.01)}
    values, infos = judged(
        methods(rule)[solver],
        problem,
        params,
        {"inputs": jnp.ones((1, 1))},
        lambda p, _: float(value(jax.tree.map(np.asarray, p))),
        100,
        1e-14,
    )
    assert any(info.indefinite for info in infos)
    assert values[-1] == pytest.approx(-0.25, abs=1e-12)
