"""How far a step goes, against dense float64 algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hfdist
from cases import Case, relative_error
from hfdist import CG, HessianFree, Newton, losses
from hfdist.parallel import collectives, data_parallel
from hfdist.quadratics import quadratic
from quick import mostly_slow
from test_cg import textbook

CASE = Case("softmax_cross_entropy", examples=8, weighted=True)
W_N, UNRAVEL = ravel_pytree(CASE.params)
each_mesh = pytest.mark.parametrize("devices", mostly_slow([1, 4], [4]))


def taken(method, gradients, devices=1):
    """A step for each gradient, all at the case's params: the steps and infos."""
    optimizer = method.build(CASE.problem, hfdist.make_mesh(devices))
    update = jax.jit(lambda g, s: optimizer.update(g, s, CASE.params, batch=CASE.batch))
    state, steps, infos = optimizer.init(CASE.params), [], []
    for gradient_N in gradients:
        step, state = update(UNRAVEL(jnp.asarray(gradient_N)), state)
        steps.append(np.asarray(ravel_pytree(step)[0]))
        infos.append(state.info)
    return steps, infos


def two_term(**settings):
    defaults = {"damping": 0.1, "learning_rate": 1.0, "cg": CG(max_steps=2, rtol=0)}
    return HessianFree(step_rule="two_term", **{**defaults, **settings})


@each_mesh
@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
def test_the_form_is_the_matrixs(curvature, devices):
    mesh = hfdist.make_mesh(devices)
    problem = CASE.problem._replace(l2=0.3)
    v_2N = np.random.default_rng(0).normal(size=(2, len(W_N)))

    def form(_, v, params, batch):
        return quadratic(problem, params, batch, curvature, collectives(mesh)).form(v)

    found = jax.jit(data_parallel(form, mesh))(
        None, [UNRAVEL(jnp.asarray(v_N)) for v_N in v_2N], CASE.params, CASE.batch
    )
    c_NN = getattr(CASE, f"dense_{curvature}")() + 0.3 * np.eye(len(W_N))
    assert found == pytest.approx(v_2N @ c_NN @ v_2N.T, rel=1e-10)


@each_mesh
@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_two_terms_are_those_of_the_dense_system(devices, rate):
    damping = 0.1
    first_N, second_N = np.random.default_rng(0).normal(size=(2, len(W_N)))
    method = two_term(learning_rate=rate, damping=damping)
    (before_N, step_N), infos = taken(method, [first_N, second_N], devices)
    g_NN = CASE.dense_gauss_newton()
    a_NN = g_NN + damping * np.eye(len(W_N))
    d_N, _ = textbook(a_NN, -second_N, 2)
    span_N2 = np.stack([d_N, before_N], 1)
    factors = np.linalg.solve(span_N2.T @ a_NN @ span_N2, span_N2.T @ -second_N)
    assert abs(factors[1]) > 0.01  # the step before does add something
    expected_N = rate * span_N2 @ factors
    assert relative_error(step_N, expected_N) < 1e-9
    predicted = -second_N @ expected_N - expected_N @ g_NN @ expected_N / 2
    assert infos[1].predicted_decrease == pytest.approx(predicted, rel=1e-9)


def test_the_first_step_and_one_along_the_last_are_exact_searches_of_the_line():
    gradient_N = CASE.dense_gradient()
    steps, _ = taken(two_term(cg=CG(max_steps=0)), [gradient_N, gradient_N])
    a_NN = CASE.dense_gauss_newton() + 0.1 * np.eye(len(W_N))
    rate = gradient_N @ gradient_N / (gradient_N @ a_NN @ gradient_N)
    for step_N in steps:
        assert relative_error(step_N, -rate * gradient_N) < 1e-9


@each_mesh
@pytest.mark.parametrize("solver", [CG(max_steps=0), CG(max_steps=1)])
def test_on_a_quadratic_one_step_each_is_conjugate_gradients(solver, devices):
    rng = np.random.default_rng(0)
    x_BD, t_B1 = rng.normal(size=(12, 5)), rng.normal(size=(12, 1))
    problem = hfdist.Problem(lambda w, b: b["inputs"] @ w, losses.squared_error)
    batch = {"inputs": jnp.asarray(x_BD), "targets": jnp.asarray(t_B1)}
    method = two_term(damping=0.0, cg=solver)
    optimizer = method.build(problem, hfdist.make_mesh(devices))
    params = jnp.zeros((5, 1))
    update = jax.jit(lambda s, p: optimizer.update(None, s, p, batch=batch))
    state = optimizer.init(params)
    for step in range(1, 5):
        updates, state = update(state, params)
        params = optax.apply_updates(params, updates)
        expected, _ = textbook(x_BD.T @ x_BD / 6, x_BD.T @ t_B1[:, 0] / 6, step)
        assert relative_error(params, expected) < 1e-8


def test_after_a_refused_step_there_is_no_step_before():
    first_N, second_N = np.random.default_rng(0).normal(size=(2, len(W_N)))
    refused_N = np.full(len(W_N), np.nan)
    steps, infos = taken(two_term(), [first_N, refused_N, second_N])
    assert not infos[1].accepted
    assert infos[2].damping == pytest.approx(0.15)
    (alone_N,), _ = taken(two_term(damping=0.15), [second_N])
    assert relative_error(steps[2], alone_N) < 1e-12


def test_without_positive_curvature_it_is_the_solution_itself():
    gradient_N = np.linalg.eigh(CASE.dense_hessian())[1][:, 0]
    method = two_term(curvature="hessian", damping=1e-3, learning_rate=0.5)
    steps, infos = taken(method, [gradient_N])
    assert infos[0].indefinite
    assert relative_error(steps[0], -0.5 * gradient_N) < 1e-9


def test_in_float32_two_tiny_terms_are_still_two():
    scale = 1e-12
    first_N, second_N = np.random.default_rng(0).normal(size=(2, len(W_N)))
    large, _ = taken(two_term(), [first_N, second_N])
    params, batch = jax.tree.map(
        lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a,
        (CASE.params, CASE.batch),
    )
    optimizer = two_term().build(CASE.problem)
    update = jax.jit(lambda g, s: optimizer.update(g, s, params, batch=batch))
    state = optimizer.init(params)
    for gradient_N in (first_N, second_N):
        gradient = UNRAVEL(jnp.asarray(scale * gradient_N))
        gradient = optax.tree.cast(gradient, jnp.float32)
        step, state = update(gradient, state)
    assert relative_error(step, scale * large[1]) < 1e-3


def test_the_input_reduction_steps_aside():
    said = two_term().explain(CASE.problem, CASE.params, CASE.batch)
    assert said.endswith("as the step before is looked back at")


def searched(method, devices=1):
    """One step at the case's params, and its info."""
    optimizer = method.build(CASE.problem, hfdist.make_mesh(devices))
    step = jax.jit(lambda s: optimizer.update(None, s, CASE.params, batch=CASE.batch))
    update, state = step(optimizer.init(CASE.params))
    return np.asarray(ravel_pytree(update)[0]), state.info


def loss_at(w_N):
    z_BC = CASE.predict(UNRAVEL(jnp.asarray(w_N)), CASE.batch)
    return float(CASE.weights() @ np.asarray(CASE.problem.loss(z_BC, CASE.batch)))


@each_mesh
@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("rate", mostly_slow([0.1, 200.0], [200.0]))
def test_a_line_search_is_armijos(rate, reduced, devices):
    settings = {"damping": 0.5, "learning_rate": rate, "input_reduction": reduced}
    method = HessianFree(step_rule="line_search", **settings)
    step_N, info = searched(method, devices)
    d_N, _ = searched(HessianFree(**{**settings, "learning_rate": 1.0}))
    gradient_N, before = CASE.dense_gradient(), CASE.dense_value()
    for j in range(60):
        expected_N = rate * 0.8**j * d_N
        if loss_at(W_N + expected_N) <= before + 1e-2 * gradient_N @ expected_N:
            break
    assert (j > 0) == (rate > 1)
    assert relative_error(step_N, expected_N) < 1e-8
    assert info.accepted
    assert info.loss_after == pytest.approx(loss_at(W_N + expected_N), rel=1e-9)
    c_s = expected_N @ CASE.dense_gauss_newton() @ expected_N
    predicted = -gradient_N @ expected_N - c_s / 2
    assert info.predicted_decrease == pytest.approx(predicted, rel=1e-6)
    rho = (before - loss_at(W_N + expected_N)) / predicted
    if not rho < 0:
        assert info.rho == pytest.approx(rho, rel=1e-5)


def test_a_decrease_that_is_less_than_sufficient_is_passed_by():
    d_N, _ = searched(HessianFree(damping=0.5, learning_rate=1.0))
    before, low, high = CASE.dense_value(), 1.0, 200.0
    for _ in range(50):  # to where the loss is again what it was
        middle = (low + high) / 2
        falls = loss_at(W_N + middle * d_N) < before
        low, high = (middle, high) if falls else (low, middle)
    rate = 0.998 * low
    assert loss_at(W_N + rate * d_N) < before
    settings = {"damping": 0.5, "learning_rate": rate}
    step_N, _ = searched(HessianFree(step_rule="line_search", **settings))
    assert relative_error(step_N, 0.8 * rate * d_N) < 1e-8


@pytest.mark.parametrize("rule", ["constant", "levenberg_marquardt"])
def test_a_search_that_finds_nothing_is_refused_with_its_reason(rule):
    method = HessianFree(
        step_rule="line_search", damping=0.5, learning_rate=1e20, damping_rule=rule
    )
    step_N, info = searched(method)
    assert not np.any(step_N)
    assert info.refusal == hfdist.Refusal.NOT_LOWERED
    assert not info.accepted


def test_a_direction_that_does_not_descend_is_refused():
    values_N, u_NN = np.linalg.eigh(CASE.dense_hessian())
    assert values_N[0] < -0.2
    method = Newton(step_rule="line_search", damping=1e-3)
    (step_N,), (info,) = taken(method, [u_NN[:, 0]])
    assert not np.any(step_N)
    assert info.refusal == hfdist.Refusal.NOT_LOWERED
    assert info.predicted_decrease < 0


def test_a_gradient_that_points_uphill_is_found_out():
    method = HessianFree(step_rule="line_search", damping=0.5)
    (step_N,), (info,) = taken(method, [-CASE.dense_gradient()])
    assert not np.any(step_N)
    assert info.refusal == hfdist.Refusal.NOT_LOWERED


def test_a_line_search_never_takes_a_worse_loss():
    method = HessianFree(
        step_rule="line_search", damping=1e-3, curvature="hessian", learning_rate=3.0
    )
    optimizer = method.build(CASE.problem)

    def body(carry, _):
        params, state = carry
        updates, state = optimizer.update(None, state, params, batch=CASE.batch)
        return (optax.apply_updates(params, updates), state), state.info

    carry = CASE.params, optimizer.init(CASE.params)
    _, infos = jax.jit(lambda c: jax.lax.scan(body, c, length=40))(carry)
    losses_ = np.asarray(infos.loss)
    assert np.all(np.diff(losses_) <= 0)
    assert losses_[-1] < 0.1 * losses_[0]
    assert np.any(infos.indefinite)
