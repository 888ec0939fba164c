"""Damping by the greatest diagonal of C so far, against dense float64 algebra."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hfdist
from cases import loop, relative_error
from hfdist import Newton, UsageError
from quick import mostly_slow
from test_outputs import DAMPING, dense_step
from test_reduction import batch_of, problem_of

SCALED = Newton(
    damping=DAMPING, learning_rate=1.0, curvature="gauss_newton", scaled_damping=True
)
ADAPTING = replace(SCALED, damping_rule="nielsen", damping=1e-3)


@pytest.mark.parametrize(
    ("loss", "l2", "devices"),
    mostly_slow(
        itertools.product(
            ["softmax_cross_entropy", "squared_error"], [0.0, 0.3], [1, 2, 4]
        ),
        {("squared_error", 0.0, 1), ("softmax_cross_entropy", 0.3, 4)},
    ),
)
def test_the_steps_are_the_dense_ones(loss, l2, devices):
    """With a dead input, on whose params nothing hangs but the penalty."""
    problem, params = problem_of((6,), loss)
    problem, batch = problem._replace(l2=l2), batch_of(loss)
    said = SCALED.explain(problem, params, batch)
    assert said == "solves for all 111 params, as the damping is scaled"
    optimizer = SCALED.build(problem, hfdist.make_mesh(devices))
    update = jax.jit(lambda s, p: optimizer.update(None, s, p, batch=batch))
    state, scales_N, diagonals = optimizer.init(params), np.zeros(111), []
    for _ in range(2):
        c_NN = hfdist.curvature(problem, params, batch).rows(np.eye(111))
        diagonals.append(np.diagonal(c_NN))
        step_N = dense_step(problem, params, batch, loss, scales_N=scales_N)
        step, state = update(state, params)
        assert relative_error(step, step_N) < 1e-10
        scales_N = np.maximum(scales_N, diagonals[-1])
        decrease = step_N @ (c_NN / 2 + DAMPING * np.diag(scales_N)) @ step_N
        assert state.info.predicted_decrease == pytest.approx(decrease, rel=1e-9)
        params = jax.tree.map(jnp.add, params, step)
    assert np.any(diagonals[1] < diagonals[0])
    assert np.any(diagonals[1] > diagonals[0])


@pytest.mark.parametrize(
    "settings",
    mostly_slow([{}, {"momentum": 0.5}, {"step_rule": "two_term"}], [{}]),
    ids=str,
)
def test_the_units_of_the_params_are_no_matter(settings):
    """The steps in v, w = S v, are S⁻¹ times those in w."""
    problem, params = problem_of((6,), "squared_error")
    w_N, unravel = ravel_pytree(params)
    rng = np.random.default_rng(5)
    units_N = jnp.exp2(jnp.asarray(rng.integers(-20, 20, w_N.size), float))

    def predict(v_N, batch):
        return problem.predict(unravel(units_N * v_N), batch)

    method, batch = replace(ADAPTING, **settings), batch_of("squared_error")
    expected, infos = loop(method.build(problem), params, batch, steps=6)
    in_units = problem._replace(predict=predict)
    found_N, others = loop(method.build(in_units), w_N / units_N, batch, steps=6)
    assert relative_error(units_N * found_N, expected) < 1e-6
    losses = [[float(info.loss) for info in run] for run in (infos, others)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[0][-1] < 0.1 * losses[0][0]


@pytest.mark.parametrize("curvature", ["hessian", "finite_difference"])
def test_a_diagonal_that_may_be_negative_is_refused(curvature):
    with pytest.raises(UsageError, match=r"scaled_damping .* use curvature='gauss_ne"):
        replace(SCALED, curvature=curvature)
