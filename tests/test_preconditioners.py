"""Probes, what is learnt from them, and CG with it, against dense float64."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hfdist
from cases import (
    LOSSES,
    ONE_DEVICE,
    Case,
    log_cosh,
    loss_and_output_hessian,
    relative_error,
)
from hfdist import CG, HessianFree, Probes, Reason, losses
from hfdist.preconditioner import Samples, due
from hfdist.preconditioners.diagonal import diagonal
from hfdist.preconditioners.kronecker import kronecker
from hfdist.probes import probe
from hfdist.roots import ROOTS
from quick import mostly_slow

CASE = Case("softmax_cross_entropy", examples=8, weighted=True)
each_loss = pytest.mark.parametrize(
    "loss", mostly_slow(LOSSES, ["softmax_cross_entropy"])
)
MAKERS = {"diagonal": diagonal, "kronecker": kronecker}


def drawn(problem, params, batch, count):
    """So many probes, as rows."""

    def flat(step):
        return ravel_pytree(probe(problem, params, batch, ONE_DEVICE, step))[0]

    return np.asarray(jax.jit(jax.vmap(flat))(jnp.arange(count)))


@each_loss
def test_the_second_moment_of_probes_is_gauss_newton(loss):
    case = Case(loss, examples=8, weighted=True)
    expected_NN = case.dense_gauss_newton()
    v_KN = drawn(case.problem, case.params, case.batch, 16_000)
    for count in (1000, 4000, 16_000):
        moment_NN = v_KN[:count].T @ v_KN[:count] / count
        error = relative_error(moment_NN, expected_NN)
        assert 0.7 < error * np.sqrt(count) < 3


@pytest.mark.parametrize("loss", LOSSES)
def test_the_roots_are_those_of_the_output_hessian(loss):
    rng = np.random.default_rng(0)
    z_BC, t_BC = rng.normal(size=(2, 4, 3))
    batch = {"targets": jnp.asarray(t_BC)}
    if loss == "softmax_cross_entropy":
        batch = {"labels": jnp.array([0, 2, 1, 1])}
        t_BC = np.eye(3)[np.asarray(batch["labels"])]
    root = ROOTS.get(LOSSES[loss])
    if root is None:
        root = partial(hfdist.roots._dense, LOSSES[loss])
    apply = root(jnp.asarray(z_BC), batch)
    rows = [apply(jnp.tile(e, (4, 1))) for e in np.eye(3)]
    r_BCC = np.stack(rows, -1)
    for r_CC, z_C, t_C in zip(r_BCC, z_BC, t_BC, strict=True):
        _, h_CC = loss_and_output_hessian(loss, z_C, t_C)
        assert relative_error(r_CC @ r_CC.T, h_CC) < 1e-12


def test_the_root_of_a_text_is_that_of_its_mean_over_tokens():
    z_BTV = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)))
    batch = {"labels": jnp.array([[0, 1, 2], [3, 0, 0]])}
    root = ROOTS[losses.next_token_cross_entropy]
    units = jnp.eye(12).reshape(12, 1, 3, 4)
    rows = [root(z_BTV, batch)(jnp.tile(e, (2, 1, 1))) for e in units]
    r_BCC = np.stack(rows, -1).reshape(2, 12, 12)
    for r_CC, z_TV in zip(r_BCC, np.asarray(z_BTV), strict=True):
        expected_CC = np.zeros((12, 12))
        for t, z_V in enumerate(z_TV):
            at = slice(4 * t, 4 * t + 4)
            p_V = np.exp(z_V) / np.exp(z_V).sum()
            expected_CC[at, at] = (np.diag(p_V) - np.outer(p_V, p_V)) / 3
        assert relative_error(r_CC @ r_CC.T, expected_CC) < 1e-12


def test_outputs_may_be_a_tree_of_a_loss_that_hfdist_does_not_know():
    def predict(params, batch):
        z_BC = CASE.predict(params, batch)
        return {"one": z_BC[:, :2], "other": z_BC[:, 2]}

    def loss(z, batch):
        z_BC = jnp.concatenate([z["one"], z["other"][:, None]], 1)
        return losses.softmax_cross_entropy(z_BC, batch)

    problem = hfdist.Problem(predict, loss)
    v_KN = drawn(problem, CASE.params, CASE.batch, 16_000)
    error = relative_error(v_KN.T @ v_KN / 16_000, CASE.dense_gauss_newton())
    assert error < 3 / np.sqrt(16_000)


def test_an_unknown_loss_of_many_outputs_is_refused():
    def predict(params, batch):
        return batch["inputs"] @ params

    batch = {"inputs": jnp.ones((2, 3)), "targets": jnp.ones((2, 65))}
    optimizer = HessianFree(damping=4.0, preconditioner="kronecker").build(
        hfdist.Problem(predict, log_cosh)
    )
    params = jnp.ones((3, 65))
    with pytest.raises(hfdist.UsageError, match=r"up to 64 outputs.*here are 65"):
        optimizer.update(None, optimizer.init(params), params, batch=batch)


def test_padding_counts_for_nothing_even_where_its_loss_is_no_number():
    case = Case("log_cosh", examples=8, weighted=True)

    def flat(batch):
        v = probe(case.problem, case.params, batch, ONE_DEVICE, jnp.int32(3))
        return ravel_pytree(v)[0]

    targets = case.batch["targets"]
    assert case.batch["weights"][-1] == 0
    padded = {**case.batch, "targets": targets.at[-1].set(jnp.nan)}
    assert relative_error(flat(padded), flat(case.batch)) == 0


SHAPES = {"cube": (2, 2, 3), "kernel": (5, 3), "row": (4,), "scalar": ()}


def probes_of(count):
    rng = np.random.default_rng(1)
    return [
        {name: jnp.asarray(rng.normal(size=shape)) for name, shape in SHAPES.items()}
        for _ in range(count)
    ]


def averaged(values, decay):
    """The k-th weighs max(1 - decay, 1/k)."""
    average = 0
    for k, value in enumerate(values, 1):
        weight = max(1 - decay, 1 / k)
        average = (1 - weight) * average + weight * value
    return average


def taught(preconditioner, probes, damping):
    """What is learnt from these in turn."""

    def body(learnt, at):
        step, probe = at
        samples = Samples(lambda _: probe, lambda v: v)
        return preconditioner.learn(learnt, samples, step, damping), None

    steps = (
        jnp.arange(1, len(probes) + 1),
        jax.tree.map(lambda *a: jnp.stack(a), *probes),
    )
    return jax.lax.scan(body, preconditioner.init(probes[0]), steps)[0]


@pytest.mark.parametrize(
    ("count", "largest", "damping"),
    mostly_slow(product([2, 5], [4096, 4], [1e-3, 10.0]), [(5, 4, 1e-3)]),
)
def test_kronecker_factors_and_their_damped_inverses(count, largest, damping):
    settings = Probes(decay=0.6, refresh=1, largest_side=largest)
    probes, preconditioner = probes_of(count), kronecker(settings)
    damping = jnp.asarray(damping)
    learnt = taught(preconditioner, probes, damping)
    assert learnt.probes == count
    (vector,) = probes_of(1)
    found = preconditioner.apply(learnt, damping, vector)
    for name in ("cube", "kernel"):
        parts = [np.asarray(v[name]).reshape(-1, 3) for v in probes]
        left = averaged([v @ v.T for v in parts], 0.6)
        right = averaged([v.T @ v for v in parts], 0.6)
        m, trace = len(left), np.trace(left)
        if m > largest:
            left = np.diag(np.diag(left))
        expected = np.linalg.solve(
            left / np.sqrt(trace) + np.sqrt(damping * 3 / m) * np.eye(m),
            np.asarray(vector[name]).reshape(-1, 3),
        ) @ np.linalg.inv(right / np.sqrt(trace) + np.sqrt(damping * m / 3) * np.eye(3))
        assert relative_error(found[name].reshape(-1, 3), expected) < 1e-10
    for name in ("row", "scalar"):
        squares = averaged([np.asarray(v[name]) ** 2 for v in probes], 0.6)
        expected = np.asarray(vector[name]) / (squares + damping)
        assert relative_error(found[name], expected) < 1e-12


def test_diagonal_of_the_averages():
    settings, damping = Probes(decay=0.6, exponent=0.75), jnp.asarray(0.1)
    probes, preconditioner = probes_of(5), diagonal(settings)
    learnt = taught(preconditioner, probes, damping)
    (vector,) = probes_of(1)
    found = preconditioner.apply(learnt, damping, vector)
    for name in SHAPES:
        squares = averaged([np.asarray(v[name]) ** 2 for v in probes], 0.6)
        expected = np.asarray(vector[name]) / (squares + 0.1) ** 0.75
        assert relative_error(found[name], expected) < 1e-12


def test_of_a_linear_layer_the_factors_are_gauss_newton_itself():
    rng = np.random.default_rng(3)
    x_BD = rng.normal(size=(6, 4)) * [3, 1, 0.3, 0.1]
    problem = hfdist.Problem(lambda w, b: b["inputs"] @ w, losses.squared_error)
    params = jnp.zeros((4, 3))
    batch = {"inputs": jnp.asarray(x_BD), "targets": jnp.zeros((6, 3))}
    v_KDC = drawn(problem, params, batch, 500).reshape(-1, 4, 3)
    settings = Probes(decay=0.999, refresh=1000)  # the mean of all
    (factors,) = taught(kronecker(settings), list(v_KDC), jnp.asarray(1.0)).state
    product_NN = np.kron(factors.left, factors.right) / np.trace(factors.left)
    expected_NN = np.kron(x_BD.T @ x_BD / 6, 2 * np.eye(3))
    assert relative_error(product_NN, expected_NN) < 0.1


@pytest.mark.parametrize("name", mostly_slow(MAKERS, ["kronecker"]))
def test_a_probe_that_is_not_finite_teaches_nothing(name):
    settings, damping = Probes(refresh=1), jnp.asarray(0.5)
    probes, preconditioner = probes_of(2), MAKERS[name](settings)
    bad = {**probes[1], "row": probes[1]["row"].at[0].set(np.nan)}
    expected = taught(preconditioner, probes, damping)
    found = taught(preconditioner, [bad, probes[0], bad, probes[1]], damping)
    assert found.probes == 2
    assert relative_error(found.state, expected.state) == 0


@pytest.mark.parametrize(
    ("name", "dtype"),
    mostly_slow(product(MAKERS, [np.float32, np.float64]), [("kronecker", np.float32)]),
)
def test_without_damping_or_probes_the_preconditioner_is_finite_and_definite(
    name, dtype
):
    settings, damping = Probes(), jnp.asarray(1e-30, dtype)
    preconditioner = MAKERS[name](settings)
    v = {"wide": jnp.ones((40, 3), dtype), "dead": jnp.zeros((3, 3), dtype)}
    learnt = taught(preconditioner, [v], damping)
    rng = np.random.default_rng(0)
    vector = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), dtype), v)
    found = preconditioner.apply(learnt, damping, vector)["wide"]
    assert np.isfinite(found).all()
    assert jnp.vdot(found, vector["wide"]) > 0


def test_what_is_due_when():
    steps = [step for step in range(1, 50) if due(jnp.int32(step), 20)]
    assert steps == [1, 2, 5, 10, 20, 40]
    assert all(due(jnp.arange(1, 9), 1))


@pytest.mark.parametrize(
    ("name", "curvature"),
    mostly_slow(
        product(MAKERS, ("gauss_newton", "hessian")), [("kronecker", "hessian")]
    ),
)
def test_a_preconditioned_solve_to_the_end_is_the_dense_solve(name, curvature):
    method = HessianFree(
        curvature=curvature,
        damping=5.0,
        preconditioner=name,
        learning_rate=1.0,
        cg=CG(max_steps=200, rtol=1e-12),
    )
    optimizer = method.build(CASE.problem)
    state = optimizer.init(CASE.params)
    updates, state = optimizer.update(None, state, CASE.params, batch=CASE.batch)
    c_NN = getattr(CASE, f"dense_{curvature}")()
    system_NN = c_NN + 5 * np.eye(len(c_NN))
    assert state.info.solver_reason == Reason.CONVERGED
    expected_N = np.linalg.solve(system_NN, -CASE.dense_gradient())
    assert relative_error(updates, expected_N) < 1e-9


def test_on_badly_scaled_inputs_the_same_cg_steps_lead_further():
    case = Case("softmax_cross_entropy", examples=40)
    scales = jnp.geomspace(0.1, 10, 5)
    batch = {**case.batch, "inputs": case.batch["inputs"] * scales}

    def decrease(name):
        method = HessianFree(
            damping=1e-3,
            preconditioner=name,
            learning_rate=1.0,
            probes=Probes(decay=0.99),
            cg=CG(max_steps=4, rtol=0),
        )
        optimizer = method.build(case.problem)

        def body(state, _):
            return optimizer.update(None, state, case.params, batch=batch)[1], None

        state, _ = jax.lax.scan(body, optimizer.init(case.params), length=40)
        return state.info.predicted_decrease

    none, *others = map(decrease, ("none", *MAKERS))
    assert 1.1 * none < min(others)


def test_the_input_reduction_steps_aside():
    method = HessianFree(damping=4.0, preconditioner="kronecker")
    said = method.explain(CASE.problem, CASE.params, CASE.batch)
    assert said == "solves for all 39 params, as the solver is preconditioned"


def test_a_preconditioner_that_is_none_of_these_is_refused():
    with pytest.raises(hfdist.UsageError, match=r"use one of none, .*, nystrom"):
        HessianFree(preconditioner="kfac")
