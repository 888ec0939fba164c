"""Conjugate gradients against numpy."""

from itertools import product as pairs

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from cases import relative_error
from hfdist import CG, Reason, System
from quick import mostly_slow

TREE = {"a": jnp.zeros((3, 4)), "b": (jnp.zeros(5), jnp.zeros(()))}
N = 18


def system(eigenvalues, dtype=np.float64):
    """A = Q diag(eigenvalues) Qᵀ with its product on TREE-shaped pytrees, and b."""
    rng = np.random.default_rng(0)
    q_NN, _ = np.linalg.qr(rng.normal(size=(N, N)))
    a_NN = ((q_NN * np.asarray(eigenvalues)) @ q_NN.T).astype(dtype)
    b_N = rng.normal(size=N).astype(dtype)
    like = jax.tree.map(lambda leaf: leaf.astype(dtype), TREE)
    unravel = ravel_pytree(like)[1]

    def product(v):
        return unravel(jnp.asarray(a_NN) @ ravel_pytree(v)[0])

    return a_NN, b_N, product, unravel


def textbook(a_NN, b_N, steps):
    """Algorithm 1 of the paper, line by line."""
    x_N, r_N = np.zeros_like(b_N), b_N.copy()
    p_N = r_N.copy()
    for _ in range(steps):
        alpha = r_N @ r_N / (p_N @ a_NN @ p_N)
        x_N = x_N + alpha * p_N
        r_next_N = r_N - alpha * a_NN @ p_N
        beta = r_next_N @ r_next_N / (r_N @ r_N)
        p_N, r_N = r_next_N + beta * p_N, r_next_N
    return x_N, r_N


def test_solution_matches_numpy():
    a_NN, b_N, product, unravel = system(np.geomspace(1, 100, N))
    solution = CG(max_steps=100, rtol=1e-14).solve(System(product, unravel(b_N)))
    assert relative_error(solution.x, np.linalg.solve(a_NN, b_N)) < 1e-10
    assert solution.reason == Reason.CONVERGED


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
def test_truncated_iterates_are_the_textbooks(steps):
    a_NN, b_N, product, unravel = system(np.geomspace(1, 100, N))
    solution = CG(max_steps=steps, rtol=0).solve(System(product, unravel(b_N)))
    x_N, r_N = textbook(a_NN, b_N, steps)
    assert solution.steps == steps
    assert solution.reason == Reason.STEPS_USED_UP
    assert relative_error(solution.x, x_N) < 1e-10
    assert relative_error(solution.residual, r_N) < 1e-10
    assert relative_error(solution.residual, b_N - a_NN @ x_N) < 1e-10


@pytest.mark.parametrize("first", [5, 8, 12])
def test_stops_at_the_relative_residual(first):
    # Early steps: near the N-th, rounding decides.
    a_NN, b_N, product, unravel = system(np.geomspace(1, 100, N))
    norms = [np.linalg.norm(textbook(a_NN, b_N, k)[1]) for k in range(first + 1)]
    rtol = (norms[first - 1] + norms[first]) / (2 * norms[0])
    assert min(norms[:first]) > rtol * norms[0]
    solution = CG(max_steps=100, rtol=rtol).solve(System(product, unravel(b_N)))
    assert solution.steps == first


def test_starting_at_the_solution_takes_no_step():
    a_NN, b_N, product, unravel = system(np.geomspace(1, 100, N))
    start = unravel(jnp.asarray(np.linalg.solve(a_NN, b_N)))
    solution = CG(max_steps=10, rtol=1e-6).solve(System(product, unravel(b_N), start))
    assert solution.steps == 0
    assert relative_error(solution.x, start) == 0


def test_a_warm_start_is_cg_on_the_remainder():
    a_NN, b_N, product, unravel = system(np.geomspace(1, 100, N))
    start_N = np.random.default_rng(5).normal(size=N)
    solution = CG(max_steps=4, rtol=0).solve(
        System(product, unravel(b_N), unravel(jnp.asarray(start_N)))
    )
    correction_N, _ = textbook(a_NN, b_N - a_NN @ start_N, 4)
    assert relative_error(solution.x, start_N + correction_N) < 1e-10


def test_negative_curvature_keeps_the_iterate_so_far():
    a_NN, b_N, product, unravel = system([-0.05, *np.geomspace(1, 10, N - 1)])
    solution = CG(max_steps=50, rtol=1e-12).solve(System(product, unravel(b_N)))
    assert solution.reason == Reason.NEGATIVE_CURVATURE
    assert solution.indefinite
    kept = int(solution.steps) - 1
    assert kept > 0
    x_N, r_N = textbook(a_NN, b_N, kept)
    assert relative_error(solution.x, x_N) < 1e-8
    assert relative_error(solution.residual, r_N) < 1e-8


@pytest.mark.parametrize("eigenvalues", [-np.ones(N), np.zeros(N)])
def test_no_positive_curvature_at_all_gives_steepest_descent(eigenvalues):
    _, b_N, product, unravel = system(eigenvalues)
    solution = CG().solve(System(product, unravel(b_N), unravel(jnp.ones(N))))
    assert solution.indefinite
    assert relative_error(solution.x, b_N) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_past_convergence_nothing_becomes_nan(dtype):
    a_NN, b_N, product, unravel = system(np.geomspace(1, 10, N), dtype)
    solution = CG(max_steps=400, rtol=0).solve(System(product, unravel(b_N)))
    assert solution.steps < 100
    expected = np.linalg.solve(a_NN.astype(np.float64), b_N)
    assert relative_error(solution.x, expected) < 100 * np.finfo(dtype).eps
    assert jax.tree.leaves(solution.x)[0].dtype == dtype


@pytest.mark.parametrize(
    ("scale", "b", "reason", "indefinite"),
    [
        (np.nan, 1.0, Reason.SINGULAR, True),  # vᵀAv is no number
        (np.inf, 1.0, Reason.NOT_FINITE, False),  # but positive
        (1.0, np.nan, Reason.NOT_FINITE, False),  # A is the identity
        (1.0, np.inf, Reason.NOT_FINITE, False),
        (0.0, 1.0, Reason.NEGATIVE_CURVATURE, True),  # or none at all
        (1.0, 0.0, Reason.CONVERGED, False),
    ],
)
def test_the_reason_of_an_end_is_said(scale, b, reason, indefinite):
    solution = CG().solve(System(lambda v: scale * v, jnp.full(3, b)))
    assert solution.reason == reason
    assert bool(solution.indefinite) == indefinite
    assert solution.reason.dtype == jnp.int32


def test_a_zero_right_hand_side_has_the_zero_solution():
    _, b_N, product, unravel = system(np.ones(N))
    solution = CG().solve(System(product, unravel(0 * b_N)))
    assert solution.steps == 0
    assert not np.any(ravel_pytree(solution.x)[0])


@pytest.mark.parametrize(
    "arguments", [{"max_steps": -1}, {"rtol": -1.0}, {"rtol": float("nan")}]
)
def test_settings_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        CG(**arguments)


def slowed_at(values, epsilon):
    """Martens' rule on the values of φ, after 0, 1, … steps; None: never."""
    for i, phi in enumerate(values):
        k = max(10, int(np.ceil(i / 10)))
        if i > k and phi < 0 and (phi - values[i - k]) / phi < k * epsilon:
            return i
    return None


def values_of(a_NN, b_N, x_N, most):
    """φ of the textbook's iterates from x."""
    r_N = b_N - a_NN @ x_N
    p_N, found = r_N, []
    for _ in range(most + 1):
        found.append(x_N @ a_NN @ x_N / 2 - b_N @ x_N)
        alpha = r_N @ r_N / (p_N @ a_NN @ p_N)
        x_N = x_N + alpha * p_N
        r_next_N = r_N - alpha * a_NN @ p_N
        p_N, r_N = r_next_N + r_next_N @ r_next_N / (r_N @ r_N) * p_N, r_next_N
    return found


def slowly_solved(size, condition):
    b_N = np.random.default_rng(0).normal(size=size)
    eigenvalues = np.geomspace(1, condition, size)
    return np.diag(eigenvalues), b_N, lambda v: eigenvalues * v


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    ("epsilon", "stops"), [(5e-4, True), (0.02, True), (1e-9, False)]
)
def test_stops_when_progress_has_slowed(epsilon, stops, warm):
    a_NN, b_N, product = slowly_solved(60, 30)
    start_N = np.full(60, 0.1 * warm)
    start = jnp.asarray(start_N) if warm else None
    solver = CG(max_steps=30, rtol=0, progress=epsilon)
    solution = solver.solve(System(product, jnp.asarray(b_N), start))
    values = values_of(a_NN, b_N, start_N, 30)
    assert solution.steps == (slowed_at(values, epsilon) or 30)
    assert solution.steps > 11
    assert stops == (solution.steps < 30)
    stopped = Reason.PROGRESS_SLOWED if stops else Reason.STEPS_USED_UP
    assert solution.reason == stopped
    assert not solution.indefinite
    x_N = np.asarray(solution.x)
    value = x_N @ a_NN @ x_N / 2 - b_N @ x_N
    assert value == pytest.approx(values[int(solution.steps)], rel=1e-9)


def test_the_window_of_progress_grows_with_the_steps():
    a_NN, b_N, product = slowly_solved(400, 1e4)
    solver = CG(max_steps=250, rtol=0, progress=5e-4)
    solution = solver.solve(System(product, jnp.asarray(b_N)))
    expected = slowed_at(values_of(a_NN, b_N, np.zeros(400), 250), 5e-4)
    assert expected > 110  # so that k > 10
    assert abs(solution.steps - expected) <= 1  # by then rounding has a say
    assert solution.reason == Reason.PROGRESS_SLOWED


def test_a_residual_that_is_small_enough_comes_before_progress():
    _, b_N, product, unravel = system(np.ones(N))
    solution = CG(max_steps=16, progress=1e6).solve(System(product, unravel(b_N)))
    assert solution.reason == Reason.CONVERGED


def badly_scaled(size=12):
    rng = np.random.default_rng(0)
    scales = np.geomspace(1, 1e4, size)
    q_NN, _ = np.linalg.qr(rng.normal(size=(size, size)))
    core_NN = (q_NN * np.linspace(1, 3, size)) @ q_NN.T
    a_NN = np.sqrt(scales)[:, None] * core_NN * np.sqrt(scales)
    return a_NN, rng.normal(size=size), scales


def preconditioned_textbook(a_NN, b_N, scales, x_N, steps):
    """Nocedal & Wright 2006, algorithm 5.3, with M = diag(scales)."""
    r_N = b_N - a_NN @ x_N
    z_N = r_N / scales
    p_N = z_N
    for _ in range(steps):
        alpha = r_N @ z_N / (p_N @ a_NN @ p_N)
        x_N = x_N + alpha * p_N
        r_next_N = r_N - alpha * a_NN @ p_N
        z_next_N = r_next_N / scales
        p_N = z_next_N + (r_next_N @ z_next_N) / (r_N @ z_N) * p_N
        r_N, z_N = r_next_N, z_next_N
    return x_N, r_N


@pytest.mark.parametrize(
    ("steps", "warm"), mostly_slow(pairs([1, 2, 5], [False, True]), [(5, True)])
)
def test_preconditioned_iterates_are_the_textbooks(steps, warm):
    a_NN, b_N, scales = badly_scaled()
    start = jnp.full(len(b_N), 0.1) if warm else None
    system = System(lambda v: jnp.asarray(a_NN) @ v, jnp.asarray(b_N), start)
    system = system._replace(precondition=lambda r: r / scales)
    solution = CG(max_steps=steps, rtol=0).solve(system)
    x_N = np.full(len(b_N), 0.1 * warm)
    x_N, r_N = preconditioned_textbook(a_NN, b_N, scales, x_N, steps)
    assert solution.steps == steps
    assert relative_error(solution.x, x_N) < 1e-10
    assert relative_error(solution.residual, r_N) < 1e-10
    norm = np.linalg.norm(r_N) / np.linalg.norm(b_N)
    assert solution.relative_residual == pytest.approx(norm, rel=1e-9)


def test_a_preconditioner_leads_to_the_same_solution_in_fewer_steps():
    a_NN, b_N, scales = badly_scaled()
    plain = System(lambda v: jnp.asarray(a_NN) @ v, jnp.asarray(b_N))
    better = plain._replace(precondition=lambda r: r / scales)
    solutions = [CG(max_steps=500, rtol=1e-9).solve(s) for s in (plain, better)]
    for solution in solutions:
        assert solution.reason == Reason.CONVERGED
        assert relative_error(solution.x, np.linalg.solve(a_NN, b_N)) < 1e-8
    assert solutions[1].steps < 0.8 * solutions[0].steps


def test_negative_curvature_at_once_gives_the_preconditioned_gradient():
    b_N, scales = jnp.ones(3), jnp.array([1.0, 2.0, 4.0])
    system = System(lambda v: -v, b_N, precondition=lambda r: r / scales)
    solution = CG().solve(system)
    assert solution.reason == Reason.NEGATIVE_CURVATURE
    assert relative_error(solution.x, b_N / scales) == 0


def test_without_steps_the_solution_is_the_first_direction():
    _, b_N, scales = badly_scaled()
    plain = System(lambda v: v, jnp.asarray(b_N))
    better = plain._replace(precondition=lambda r: r / scales)
    for system, expected_N in (plain, b_N), (better, b_N / scales):
        solution = CG(max_steps=0).solve(system)
        assert relative_error(solution.x, expected_N) < 1e-15
        assert solution.residual is None
        assert jnp.isnan(solution.relative_residual)
        assert solution.steps == 0
        assert solution.reason == Reason.STEPS_USED_UP
