"""The penalty ½ Σ μ w² in value, gradient and product, against dense algebra."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hfdist
from cases import LM, Case, relative_error
from hfdist import CG, SGD, HessianFree, Newton
from hfdist.runs.config import Config
from quick import mostly_slow

CASE = Case("softmax_cross_entropy", examples=8, weighted=True)
TREE = {
    "first": {"kernel": 0.1, "bias": 0.0},
    "second": {"kernel": 0.5, "bias": 2.0},
}
W_N = np.asarray(ravel_pytree(CASE.params)[0])
each_l2 = pytest.mark.parametrize("l2", [0.3, TREE], ids=["number", "tree"])
each_mesh = pytest.mark.parametrize("devices", mostly_slow([1, 4], [4]))


def mu_of(l2):
    """μ of each param."""
    if l2 is not TREE:
        return np.full(len(W_N), l2)
    spread = jax.tree.map(lambda w, mu: jnp.full(w.shape, mu), CASE.params, l2)
    return np.asarray(ravel_pytree(spread)[0])


def update(method, l2, devices=1):
    problem = CASE.problem._replace(l2=l2)
    optimizer = method.build(problem, hfdist.make_mesh(devices))
    step = jax.jit(lambda s, p, b: optimizer.update(None, s, p, batch=b))
    return step(optimizer.init(CASE.params), CASE.params, CASE.batch)


METHODS = {
    "cg": ("gauss_newton", HessianFree(damping=1.0, cg=CG(max_steps=99, rtol=1e-13))),
    "cg_hessian": (
        "hessian",
        HessianFree(damping=9.0, curvature="hessian", cg=CG(max_steps=99, rtol=1e-13)),
    ),
    "dense": ("hessian", Newton(damping=9.0)),
    "dense_gauss_newton": (
        "gauss_newton",
        Newton(damping=1.0, curvature="gauss_newton"),
    ),
    "finite_difference": (
        "hessian",
        HessianFree(damping=9.0, curvature="finite_difference"),
    ),
}


@each_l2
@each_mesh
@pytest.mark.parametrize("name", METHODS)
def test_steps_are_those_of_the_penalised_matrix(name, devices, l2):
    curvature, method = METHODS[name]
    mu_N = mu_of(l2)
    gradient_N = CASE.dense_gradient() + mu_N * W_N
    matrix_NN = getattr(CASE, f"dense_{curvature}")() + np.diag(mu_N)
    matrix_NN += method.damping * np.eye(len(W_N))
    step, state = update(method, l2, devices)
    expected = -0.5 * np.linalg.solve(matrix_NN, gradient_N)
    tolerance = 1e-3 if name == "finite_difference" else 1e-9
    assert relative_error(step, expected) < tolerance
    value = CASE.dense_value() + mu_N @ W_N**2 / 2
    assert state.info.loss == pytest.approx(value, rel=1e-12)
    norm = np.linalg.norm(gradient_N)
    assert state.info.gradient_norm == pytest.approx(norm, rel=1e-9)


@each_l2
@each_mesh
def test_sgd_descends_the_penalised_gradient(devices, l2):
    step, _ = update(SGD(learning_rate=0.1), l2, devices)
    expected = -0.1 * (CASE.dense_gradient() + mu_of(l2) * W_N)
    assert relative_error(step, expected) < 1e-12


@each_l2
@each_mesh
def test_rho_is_of_the_penalised_loss(devices, l2):
    method = HessianFree(damping=1.0, damping_rule=LM)
    step, state = update(method, l2, devices)
    step_N, mu_N = np.asarray(ravel_pytree(step)[0]), mu_of(l2)
    moved = jax.tree.map(jnp.add, CASE.params, step)
    losses_B = CASE.problem.loss(CASE.predict(moved, CASE.batch), CASE.batch)
    after = CASE.weights() @ np.asarray(losses_B) + mu_N @ (W_N + step_N) ** 2 / 2
    assert state.info.loss_after == pytest.approx(after, rel=1e-12)
    matrix_NN = CASE.dense_gauss_newton() + np.diag(mu_N)
    predicted = -(CASE.dense_gradient() + mu_N * W_N) @ step_N
    predicted -= step_N @ matrix_NN @ step_N / 2
    assert state.info.predicted_decrease == pytest.approx(predicted, rel=1e-9)
    before = CASE.dense_value() + mu_N @ W_N**2 / 2
    assert state.info.rho == pytest.approx((before - after) / predicted, rel=1e-8)


def test_the_reduction_steps_aside():
    case = replace(CASE, examples=3, weighted=False)
    method = Newton(damping=9.0)
    plain, penalised = case.problem, case.problem._replace(l2=1e-4)
    assert "span" in method.explain(plain, case.params, case.batch)
    said = method.explain(penalised, case.params, case.batch)
    assert "gradient of its l2 penalty is outside the span" in said


def test_the_trainers_l2_is_the_problems():
    config = Config(method=SGD(), l2=0.25)
    assert config.build_problem()[0].l2 == 0.25


@pytest.mark.parametrize(
    ("l2", "message"),
    [
        (-1.0, "l2 is -1.0: use a number that is 0 or more"),
        (float("nan"), "l2 is nan"),
        ({"first": 1.0}, "l2 is a tree, but not like the params"),
        (jnp.ones(39), "l2 holds an array: give one number for each array"),
    ],
)
def test_a_penalty_that_does_not_fit_is_refused(l2, message):
    with pytest.raises(ValueError, match=message):
        update(SGD(), l2)
