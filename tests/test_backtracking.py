"""Going back over CG's iterates, against the same walk in numpy."""

from itertools import product as pairs
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hfdist
from cases import Case, loop, network, relative_error
from hfdist import CG, HessianFree, System
from hfdist.backtracking import backtracked
from hfdist.quadratics import Quadratic, Value
from hfdist.solvers.iterates import Iterates, marks
from hfdist.solvers.solution import Reason, Solution
from quick import mostly_slow
from test_cg import system, textbook

SMALL = Case("softmax_cross_entropy", examples=8, weighted=True)
BIG = Case("softmax_cross_entropy", examples=40)
W_N, UNRAVEL = ravel_pytree(SMALL.params)
MARTENS = [5, 7, 9, 11, 15, 19, 25, 32, 41, 54, 69, 90, 117, 152, 197]


def walk(losses):
    """The place that the walk from the last of these losses ends at."""
    place = len(losses) - 1
    while place and (
        losses[place - 1] < losses[place] or not np.isfinite(losses[place])
    ):
        place -= 1
    return place


def test_the_steps_kept_are_martens():
    assert list(marks(250)) == MARTENS
    assert list(marks(25)) == MARTENS[:6]  # the 25th is the last, which x is
    assert marks(5) == ()


@pytest.mark.parametrize(
    ("stored", "most", "rtol", "expected"),
    [
        (3, 12, 0, [7, 9, 11]),  # the newest
        (9, 12, 0, [5, 7, 9, 11]),
        (1, 10, 0, [9]),
        (2, 99, "after 8", [5, 7]),  # not those of steps that were not taken
        (2, 99, "after 3", []),
        (2, 99, "after 7", [5]),  # the 7th is the last
    ],
)
def test_the_iterates_kept_are_the_textbooks(stored, most, rtol, expected):
    a_NN, b_N, product, unravel = system(np.geomspace(1, 100, 18))
    if rtol:
        end = int(rtol.split()[1])
        norms = [np.linalg.norm(textbook(a_NN, b_N, k)[1]) for k in (end - 1, end)]
        rtol = sum(norms) / 2 / np.linalg.norm(b_N)
    cg = CG(max_steps=most, rtol=rtol, stored=stored)
    solution = cg.solve(System(product, unravel(b_N)))
    assert (
        sorted(solution.iterates.steps)
        == [0] * (min(stored, len(marks(most))) - len(expected)) + expected
    )
    for place, k in enumerate(solution.iterates.steps):
        row = jax.tree.map(lambda rows, at=place: rows[at], solution.iterates.x)
        x_N, _ = textbook(a_NN, b_N, int(k))
        assert np.allclose(ravel_pytree(row)[0], x_N, rtol=1e-10)


def test_an_iterate_that_negative_curvature_ended_at_is_not_kept_twice():
    _, b_N, product, unravel = system([-0.1, *np.geomspace(1, 10, 17)])
    plain = CG(max_steps=50, rtol=1e-12).solve(System(product, unravel(b_N)))
    assert plain.reason == Reason.NEGATIVE_CURVATURE
    last = int(plain.steps) - 1
    assert last in MARTENS
    cg = CG(max_steps=50, rtol=1e-12, stored=9)
    kept = cg.solve(System(product, unravel(b_N))).iterates.steps
    assert set(kept.tolist()) == {0, *(k for k in MARTENS if k < last)}


LOSSES = {
    "the last is best": [5.0, 4.0, 3.0, 2.0, 1.0],
    "the first is best": [1.0, 2.0, 3.0, 4.0, 5.0],
    "one between": [4.0, 1.0, 2.0, 3.0, 4.0],
    "a hill hides a lower one": [0.0, 4.0, 2.0, 3.0, 4.0],
    "no difference": [3.0, 3.0, 3.0, 3.0, 3.0],
    "the last are not finite": [3.0, 2.0, 1.0, np.inf, np.nan],
    "none is finite": [np.nan, np.inf, np.nan, np.inf, np.nan],
    "an earlier one is not finite": [1.0, 1.0, np.nan, 3.0, 4.0],
    "the last alone": [1.0],
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_walk_is_numpys(name):
    losses = np.array(LOSSES[name])
    *earlier, last = np.arange(1.0, len(losses) + 1)
    # In a ring whose newest is not in its last place, with one place empty.
    places = np.roll([0.0, *earlier], 2)
    iterates = Iterates(
        {"x": jnp.asarray(places)[:, None]}, jnp.asarray(places, jnp.int32)
    )

    def value_at(d: Any) -> Value:
        index = jnp.round(d["x"][0] / 0.5).astype(int) - 1
        return Value(jnp.asarray(losses)[index], jnp.zeros(()))

    model = Quadratic(*[None] * 3, value_at, None)  # pyright: ignore[reportArgumentType]
    product = lambda v: {"x": 3 * v["x"]}  # noqa: E731
    equations = System(product, {"x": jnp.array([2.0])})
    r = 2 - 3 * last
    solution = Solution(
        {"x": jnp.array([last])},
        {"x": jnp.array([r])},
        jnp.asarray(abs(r) / 2),
        jnp.int32(40),
        jnp.int32(Reason.STEPS_USED_UP),
        iterates,
    )
    found = jax.jit(lambda: backtracked(equations, solution, model, jnp.asarray(0.5)))()
    expected = walk(losses) + 1.0
    assert found.x["x"] == expected
    assert found.residual["x"] == 2 - 3 * expected
    assert found.relative_residual == abs(2 - 3 * expected) / 2
    assert (found.steps, found.reason) == (40, Reason.STEPS_USED_UP)


def loss_at(w_N):
    z_BC = BIG.predict(UNRAVEL(jnp.asarray(w_N)), BIG.batch)
    return float(np.mean(np.asarray(BIG.problem.loss(z_BC, BIG.batch))))


def walked(w_N, gradient_N, start_N, damping, rate):
    """The last iterate of 12 CG steps over SMALL, that of the walk, and its steps."""
    case_NN = SMALL.dense_gauss_newton() + damping * np.eye(len(w_N))
    b_N = -gradient_N - case_NN @ start_N
    steps = [5, 7, 9, 11, 12]
    iterates = [start_N + textbook(case_NN, b_N, k)[0] for k in steps]
    place = walk([loss_at(w_N + rate * x_N) for x_N in iterates])
    return iterates[-1], iterates[place], steps[place]


METHOD = {"cg": CG(max_steps=12, rtol=0, stored=4), "damping": 1e-2}
ENDS = {1e-4: 12, 3.0: 11, 3e-3: 9, 1.0: 5}  # α: the steps of the iterate taken


@pytest.mark.parametrize(
    ("rate", "devices"), mostly_slow(pairs(ENDS, [1, 2, 4]), [(1e-4, 1), (3e-3, 4)])
)
def test_the_step_is_that_of_the_best_iterate_for_the_whole_batch(rate, devices):
    gradient_N, damping = BIG.dense_gradient(), METHOD["damping"]
    _, x_N, steps = walked(W_N, gradient_N, 0 * gradient_N, damping, rate)
    assert steps == ENDS[rate]
    method = HessianFree(learning_rate=rate, **METHOD)
    optimizer = method.build(BIG.problem, hfdist.make_mesh(devices))
    update = jax.jit(optimizer.update)
    step, state = update(
        None,
        optimizer.init(SMALL.params),
        SMALL.params,
        batch=BIG.batch,
        curvature_batch=SMALL.batch,
    )
    step_N, g_NN = np.asarray(ravel_pytree(step)[0]), SMALL.dense_gauss_newton()
    assert relative_error(step_N, rate * x_N) < 1e-5
    residual_N = gradient_N + (g_NN @ step_N + damping * step_N) / rate
    relative = np.linalg.norm(residual_N) / np.linalg.norm(gradient_N)
    assert state.info.cg_residual == pytest.approx(relative, rel=1e-6)
    assert state.info.cg_steps == 12
    predicted = -gradient_N @ step_N - step_N @ g_NN @ step_N / 2
    assert state.info.predicted_decrease == pytest.approx(predicted, rel=1e-6)


def test_a_warm_start_goes_on_from_the_last_iterate():
    method = HessianFree(learning_rate=1.0, warm_start=0.9, **METHOD)
    optimizer = method.build(BIG.problem)
    state, params = optimizer.init(SMALL.params), SMALL.params
    batches = {"batch": BIG.batch, "curvature_batch": SMALL.batch}
    gradient_N, damping = BIG.dense_gradient(), METHOD["damping"]
    last_N, x_N, _ = walked(W_N, gradient_N, 0 * gradient_N, damping, 1.0)
    assert relative_error(last_N, x_N) > 0.1
    expected_N = walked(W_N, gradient_N, 0.9 * last_N, damping, 1.0)[1]
    update = jax.jit(optimizer.update)
    for _ in range(2):  # at the same params
        step, state = update(None, state, params, **batches)
    assert relative_error(step, expected_N) < 1e-6


@pytest.mark.parametrize("devices", mostly_slow([1, 2, 4], [4]))
def test_in_the_span_of_the_inputs_the_walk_is_the_same(devices):
    problem, params, batch = network(inputs=60, outputs=3, examples=8, seed=3)

    def after(devices=1, reduced=True, **settings):
        method = HessianFree(
            cg=CG(max_steps=10, rtol=0, **settings),
            damping=1e-2,
            learning_rate=6.0,
            input_reduction=reduced,
        )
        assert method.explain(problem, params, batch).startswith(
            "solves in the span" if reduced else "solves for all"
        )
        return loop(method.build(problem, hfdist.make_mesh(devices)), params, batch, 1)

    found, (info,) = after(devices, stored=2)
    expected, (expected_info,) = after(reduced=False, stored=2)
    last, _ = after(reduced=False)
    assert relative_error(expected, last) > 0.01  # the walk went
    assert relative_error(found, expected) < 1e-8
    assert info.cg_residual == pytest.approx(float(expected_info.cg_residual), rel=1e-6)


@pytest.mark.parametrize("rule", ["fixed_rate", "line_search", "two_term"])
def test_any_step_rule_takes_what_comes_out(rule):
    settings = {"damping_rule": "levenberg_marquardt", "step_rule": rule, **METHOD}
    _, infos = loop(HessianFree(**settings).build(BIG.problem), SMALL.params, BIG.batch)
    losses = [float(info.loss) for info in infos]
    assert losses[0] > losses[1] > losses[2]


def test_too_few_steps_to_keep_any_are_refused():
    with pytest.raises(hfdist.UsageError, match=r"stored is 3.*5 steps, and max_steps"):
        CG(max_steps=5, stored=3)
