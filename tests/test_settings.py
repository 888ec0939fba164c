"""Choices checked when they are made; numbers that are schedules, or traced."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hfdist
from cases import LM, Case, relative_error
from hfdist import CG, SGD, HessianFree, Newton
from hfdist.config import Config
from hfdist.models.mlp import MLP

CASE = Case("softmax_cross_entropy", examples=8, weighted=True)
METHODS = {
    "cg": HessianFree(damping=1.0, cg=CG(max_steps=3, rtol=0.0)),
    "dense": Newton(damping=5.0),
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
each_mesh = pytest.mark.parametrize("devices", [1, 4])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: HessianFree(damping_rule="constnat"),
            r"damping_rule is 'constnat': use one of constant, leven.*\(perhaps 'const",
        ),
        (
            lambda: Newton(curvature="ggn"),
            "curvature is 'ggn': use one of gauss",
        ),
        (
            lambda: hfdist.quadratic(CASE.problem, CASE.params, CASE.batch, "ggn"),
            "curvature is 'ggn'",
        ),
        (lambda: Config(method=SGD(), dtype="float16"), "dtype is 'float16'"),
        (lambda: Config(method=SGD(), loss="mse"), "loss is 'mse'"),
        (lambda: MLP(activation="rleu"), r"activation is 'rleu'.*\(perhaps 'relu'\)"),
        (lambda: HessianFree(damping_bounds=(0.0, 1.0)), "damping_bounds is 0.0"),
        (lambda: HessianFree(damping_bounds=(1.0, 0.1)), "give the least first"),
        (
            lambda: HessianFree(damping=0.0, damping_rule=LM),
            "damping is 0.0, outside damping_bounds",
        ),
        (
            lambda: Newton(damping=optax.constant_schedule(1.0), damping_rule=LM),
            "damping is a schedule, but levenberg_marquardt moves",
        ),
        (
            lambda: Config(method=SGD(learning_rate=optax.constant_schedule(0.1))),
            r"method.learning_rate is a function, which config.json cannot hold",
        ),
        (lambda: Config(method=SGD(), l2=-1.0), "l2 is -1.0"),
    ],
)
def test_a_setting_that_is_no_choice_is_refused_at_once(make, message):
    with pytest.raises(hfdist.UsageError, match=message):
        make()


def step_of(method, devices=1, params=CASE.params):
    optimizer = method.build(CASE.problem, hfdist.make_mesh(devices))
    update = jax.jit(lambda s, p: optimizer.update(None, s, p, batch=CASE.batch))
    return update(optimizer.init(params), params)


@each_method
@each_mesh
def test_schedules_are_followed_update_by_update(method, devices):
    damping, rate = optax.linear_schedule(4, 1, 3), optax.linear_schedule(1, 0.1, 3)
    scheduled = replace(method, damping=damping, learning_rate=rate)
    optimizer = scheduled.build(CASE.problem, hfdist.make_mesh(devices))
    state, params = optimizer.init(CASE.params), CASE.params
    update = jax.jit(lambda s, p: optimizer.update(None, s, p, batch=CASE.batch))
    for k in range(5):
        step, state = update(state, params)
        fixed = replace(method, damping=float(damping(k)), learning_rate=float(rate(k)))
        expected, _ = step_of(fixed, params=params)
        assert relative_error(step, expected) < 1e-6  # optax counts in float32
        assert state.info.damping == pytest.approx(float(damping(k)), rel=1e-6)
        params = optax.apply_updates(params, step)


@each_method
def test_a_schedule_comes_back_to_itself_after_a_solve_that_failed(method):
    damping = optax.piecewise_constant_schedule(4.0, {2: 0.01})
    optimizer = replace(method, damping=damping).build(CASE.problem)
    state = optimizer.init(CASE.params)
    seen = []
    for _ in range(4):
        _, state = optimizer.update(None, state, CASE.params, batch=CASE.batch)
        seen.append(float(state.info.damping))
    assert seen == pytest.approx([4.0, 4.0, 0.04, 0.04])


@each_method
@each_mesh
@pytest.mark.parametrize("rule", ["constant", LM])
def test_vmap_over_damping(method, devices, rule):
    dampings = np.array([2.0, 8.0])

    def step(damping):
        return step_of(replace(method, damping=damping, damping_rule=rule), devices)

    steps, states = jax.vmap(step)(jnp.asarray(dampings))
    for i, damping in enumerate(dampings):
        one, state = step(float(damping))
        assert relative_error(jax.tree.map(lambda a, i=i: a[i], steps), one) < 1e-10
        assert states.info.damping[i] == state.info.damping


@each_method
@each_mesh
def test_hyperparameters_injected_under_jit(method, devices):
    mesh = hfdist.make_mesh(devices)

    def build(damping, learning_rate):
        changed = replace(method, damping=damping, learning_rate=learning_rate)
        return changed.build(CASE.problem, mesh)

    optimizer = optax.inject_hyperparams(build)(damping=4.0, learning_rate=0.5)
    update = jax.jit(lambda s: optimizer.update(None, s, CASE.params, batch=CASE.batch))
    step, state = update(optimizer.init(CASE.params))
    expected, _ = step_of(replace(method, damping=4.0, learning_rate=0.5))
    assert relative_error(step, expected) < 1e-10
    state.hyperparams["damping"] = jnp.asarray(2.0)
    state.hyperparams["learning_rate"] = jnp.asarray(0.25)
    step, state = update(state)
    expected, _ = step_of(replace(method, damping=2.0, learning_rate=0.25))
    assert relative_error(step, expected) < 1e-10


def test_rho_judges_the_step_that_the_schedule_takes():
    rate = optax.constant_schedule(0.3)
    common = {"damping": 2.0, "damping_rule": LM}
    _, scheduled = step_of(HessianFree(**common, learning_rate=rate))
    _, fixed = step_of(HessianFree(**common, learning_rate=0.3))
    assert scheduled.info.rho == pytest.approx(float(fixed.info.rho), rel=1e-6)
