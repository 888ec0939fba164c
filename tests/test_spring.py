"""Momentum in the null space of the batch, against dense float64 algebra."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hfdist
from quick import mostly_slow
from test_outputs import BY_OUTPUTS, WAYS, dense_step, step_of
from test_reduction import batch_of, problem_of

BETA = 0.9


def second_step(method, devices=1):
    """(before, params, batch, step, info): of the second of two steps."""
    problem, params = problem_of((6,))
    optimizer = method.build(problem, hfdist.make_mesh(devices))
    before, state = step_of(method, problem, params, batch_of(), devices)
    params = jax.tree.map(jnp.add, params, before)
    update = jax.jit(lambda s, p: optimizer.update(None, s, p, batch=batch_of()))
    step, state = update(state, params)
    return before, problem, params, step, state.info


@pytest.mark.parametrize(
    ("way", "devices"),
    mostly_slow([("outputs", 1), ("outputs", 2), ("all params", 1)], [("outputs", 2)]),
)
def test_the_step_is_the_dense_one(way, devices):
    rate = 0.5
    method = replace(WAYS[way], momentum=BETA, learning_rate=rate)
    before, problem, params, step, info = second_step(method, devices)
    w_N, _ = ravel_pytree(params)
    c = hfdist.curvature(problem, params, batch_of())
    g_NN, damping = c.rows(np.eye(w_N.size)), method.damping
    plain_N = dense_step(problem, params, batch_of(), "softmax_cross_entropy")
    gradient_N = -(g_NN + damping * np.eye(w_N.size)) @ plain_N
    p_N = BETA / rate * np.asarray(ravel_pytree(before)[0])
    expected_N = rate * np.linalg.solve(
        g_NN + damping * np.eye(w_N.size), damping * p_N - gradient_N
    )
    step_N = np.asarray(ravel_pytree(step)[0])
    assert step_N == pytest.approx(expected_N, abs=1e-9)
    predicted = -gradient_N @ step_N - step_N @ g_NN @ step_N / 2
    assert info.predicted_decrease == pytest.approx(predicted, rel=1e-8)


@pytest.mark.slow
def test_what_the_batch_says_nothing_of_goes_on():
    """As λ → 0: β s₋ in the null space of G, the step without momentum beside it."""
    method = replace(BY_OUTPUTS, damping=1e-7)
    _, problem, params, step, _ = second_step(replace(method, momentum=BETA))
    step_N = np.asarray(ravel_pytree(step)[0])
    before, *_ = second_step(replace(method, momentum=BETA))
    plain, _ = step_of(method, problem, params, batch_of())
    values_N, u_NN = np.linalg.eigh(
        hfdist.curvature(problem, params, batch_of()).rows(np.eye(step_N.size))
    )
    nothing = u_NN[:, values_N < 1e-12 * values_N[-1]]
    much = u_NN[:, values_N > 1e-3 * values_N[-1]]
    before_N, plain_N = (np.asarray(ravel_pytree(v)[0]) for v in (before, plain))
    assert nothing.T @ step_N == pytest.approx(BETA * nothing.T @ before_N, abs=1e-6)
    assert np.linalg.norm(nothing.T @ before_N) > 1e-3
    assert much.T @ step_N == pytest.approx(much.T @ plain_N, abs=1e-3)
