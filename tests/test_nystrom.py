"""The Nyström preconditioner against dense algebra in numpy."""

from functools import partial
from itertools import product as pairs

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hfdist
from cases import Case, loop, relative_error
from hfdist import CG, HessianFree, Probes, Reason, System
from hfdist.preconditioner import Samples
from hfdist.preconditioners.nystrom import _drawn, nystrom
from quick import mostly_slow

CASE = Case("softmax_cross_entropy", examples=8, weighted=True)
TREE = {"a": jnp.zeros((6, 9)), "b": (jnp.zeros(5), jnp.zeros(()))}
N = 60


def matrix(eigenvalues, dtype=np.float64):
    """G = Q diag(eigenvalues) Qᵀ, Q, and its products with trees like TREE."""
    q_NN, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(N, N)))
    g_NN = (q_NN * np.asarray(eigenvalues)) @ q_NN.T
    g = jnp.asarray(g_NN, dtype)

    def product(v):
        flat_N, unravel = ravel_pytree(v)
        return unravel(jnp.matmul(g, flat_N, precision="highest"))

    return g_NN, product


def sketched(product, rank, step=1, dtype=np.float64):
    """The preconditioner, and its state after a step."""
    preconditioner = nystrom(Probes(rank=rank))
    state = preconditioner.init(jax.tree.map(lambda a: a.astype(dtype), TREE))
    samples = Samples(lambda step: None, product)
    learn = jax.jit(partial(preconditioner.learn, samples=samples))
    args = {"step": jnp.int32(step), "damping": jnp.asarray(0.1, dtype)}
    return preconditioner, learn(state, **args)


def rows(tree):
    """Leaves (R, …) as one matrix (R, N)."""
    return np.asarray(jax.vmap(lambda row: ravel_pytree(row)[0])(tree))


def inverse(preconditioner, state, damping, dtype=np.float64):
    """M⁻¹ (N, N)."""
    _, unravel = ravel_pytree(jax.tree.map(lambda a: a.astype(dtype), TREE))

    def column(e_N):
        applied = preconditioner.apply(state, jnp.asarray(damping, dtype), unravel(e_N))
        return ravel_pytree(applied)[0]

    return np.asarray(jax.vmap(column)(jnp.eye(N, dtype=dtype))).T


@pytest.mark.parametrize("rank", [1, 7, N])
def test_the_sketch_is_nystroms_approximation(rank):
    g_NN, product = matrix(np.geomspace(1e-3, 10, N))
    preconditioner, state = sketched(product, rank)
    omega_RN = rows(_drawn(jnp.int32(1), state.vectors))
    y_RN = omega_RN @ g_NN
    expected_NN = y_RN.T @ np.linalg.solve(omega_RN @ y_RN.T, y_RN)
    u_RN = rows(state.vectors)
    assert relative_error(u_RN @ u_RN.T, np.eye(rank)) < 1e-9
    assert relative_error((u_RN.T * state.values) @ u_RN, expected_NN) < 1e-9

    damping = 0.3
    least = state.values[0]
    scaled_NN = (u_RN.T * (np.asarray(state.values) + damping)) @ u_RN
    other_NN = np.eye(N) - u_RN.T @ u_RN
    m_NN = scaled_NN / (least + damping) + other_NN
    found_NN = inverse(preconditioner, state, damping)
    assert relative_error(found_NN, np.linalg.inv(m_NN)) < 1e-9


def steps_to(precondition, g_NN, product, b_N, damping):
    _, unravel = ravel_pytree(TREE)

    def damped(v):
        return jax.tree.map(lambda a, b: a + damping * b, product(v), v)

    equations = System(damped, unravel(jnp.asarray(b_N)), precondition=precondition)
    solution = jax.jit(lambda: CG(max_steps=500, rtol=1e-8).solve(equations))()
    expected_N = np.linalg.solve(g_NN + damping * np.eye(N), b_N)
    assert relative_error(solution.x, expected_N) < 1e-6
    return int(solution.steps)


@pytest.mark.parametrize("outliers", [1, 10])
def test_it_takes_out_outliers_of_which_its_rank_is_some_more(outliers):
    rest, far = np.geomspace(0.1, 1, N - outliers), np.geomspace(1e2, 1e4, outliers)
    b_N, damping = np.random.default_rng(1).normal(size=N), 0.01
    g_NN, product = matrix([*rest, *far])
    preconditioner, state = sketched(product, outliers + 10)
    precondition = partial(preconditioner.apply, state, jnp.asarray(damping))
    alone = steps_to(None, *matrix([*rest, *(0 * far + 1)]), b_N, damping)
    found = steps_to(precondition, g_NN, product, b_N, damping)
    assert found <= alone
    plain = steps_to(None, g_NN, product, b_N, damping)
    assert plain > alone * (3 if outliers > 1 else 1.1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("known", [0, 2])
def test_of_a_matrix_of_lower_rank_it_is_still_finite_and_definite(known, dtype):
    damping = 1e-30 if known == 0 else 1e-6
    _, product = matrix([*[0.0] * (N - known), *[30.0, 500.0][:known]], dtype)
    preconditioner, state = sketched(product, 10, dtype=dtype)
    inverse_NN = inverse(preconditioner, state, damping, dtype)
    assert np.isfinite(inverse_NN).all()
    assert np.linalg.eigvalsh((inverse_NN + inverse_NN.T) / 2)[0] > 0
    u_RN = rows(state.vectors)
    norms_R = np.linalg.norm(u_RN, axis=1)
    assert sorted(np.round(norms_R, 5)) == [0.0] * (10 - known) + [1.0] * known
    if known:
        assert np.allclose(state.values[-known:], [30, 500], rtol=1e-5)


def test_before_a_sketch_it_is_the_identity():
    preconditioner = nystrom(Probes(rank=4))
    state = preconditioner.init(TREE)
    assert relative_error(inverse(preconditioner, state, 0.0), np.eye(N)) == 0


def test_a_sketch_that_is_not_finite_counts_for_nothing():
    _, product = matrix(np.geomspace(1, 10, N))
    preconditioner, state = sketched(product, 3)

    def poisoned(v):
        result = product(v)
        return {**result, "a": result["a"].at[0, 0].set(jnp.nan)}

    samples = Samples(lambda step: None, poisoned)
    after = preconditioner.learn(state, samples, jnp.int32(2), jnp.asarray(0.1))
    assert relative_error(after, state) == 0


def test_a_sketch_is_made_where_it_is_due_and_kept_between():
    _, product = matrix(np.geomspace(1, 10, N))
    settings = Probes(rank=3, every=4)
    preconditioner = nystrom(settings)
    samples = Samples(lambda step: None, product)

    def body(state, step):
        state = preconditioner.learn(state, samples, step, jnp.asarray(0.1))
        return state, state.vectors["b"][1]

    _, at_TR = jax.lax.scan(body, preconditioner.init(TREE), jnp.arange(1, 14))
    changed = np.flatnonzero(np.any(np.diff(at_TR, axis=0), axis=1)) + 2
    assert changed.tolist() == [2, 4, 5, 8, 10, 12]


def method(**settings):
    defaults = {"preconditioner": "nystrom", "damping": 5.0, "learning_rate": 1.0}
    return HessianFree(**{**defaults, **settings})


@pytest.mark.parametrize(
    ("curvature", "devices"),
    mostly_slow(pairs(["gauss_newton", "hessian"], [1, 2, 4]), [("hessian", 2)]),
)
def test_a_solve_to_the_end_is_the_dense_solve(curvature, devices):
    settings = {"curvature": curvature, "cg": CG(max_steps=200, rtol=1e-12)}
    optimizer = method(**settings).build(CASE.problem, hfdist.make_mesh(devices))
    state = optimizer.init(CASE.params)
    step = jax.jit(optimizer.update)
    updates, state = step(None, state, CASE.params, batch=CASE.batch)
    c_NN = getattr(CASE, f"dense_{curvature}")()
    assert state.info.solver_reason == Reason.CONVERGED
    expected_N = np.linalg.solve(c_NN + 5 * np.eye(39), -CASE.dense_gradient())
    assert relative_error(updates, expected_N) < 1e-9


@pytest.mark.parametrize(
    ("rank", "l2"), mostly_slow([(16, 0.0), (39, 0.3), (99, 0.3)], [(99, 0.3)])
)
def test_of_full_rank_it_is_the_solve_itself(rank, l2):
    """At most 16 eigenvalues are not 0: 8 examples of 3 probabilities; 39 params."""
    problem = CASE.problem._replace(l2=l2)
    settings = {"damping": 1e-3, "probes": Probes(rank=rank)}
    tight = CG(max_steps=50, rtol=1e-6)
    built = method(cg=tight, **settings).build(problem)
    _, infos = loop(built, CASE.params, CASE.batch, 1)
    assert infos[0].cg_steps <= 2


@pytest.mark.parametrize("devices", mostly_slow([2, 4], [2]))
def test_many_devices_sketch_what_one_does(devices):
    optimizers = [
        method(damping=0.1, cg=CG(max_steps=3, rtol=0)).build(CASE.problem, mesh)
        for mesh in (None, hfdist.make_mesh(devices))
    ]
    one, many = (loop(o, CASE.params, CASE.batch)[0] for o in optimizers)
    assert relative_error(many, one) < 1e-10
