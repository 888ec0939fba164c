"""The dense solve against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import relative_error
from hfdist import Dense, Reason, System, memory
from hfdist.solvers import dense
from test_cg import TREE, N, system

DEFINITE = np.geomspace(1, 100, N)
INDEFINITE = np.linspace(-3, 4.5, N)


@pytest.mark.parametrize("block", [1, 5, N, 100])
@pytest.mark.parametrize("eigenvalues", [DEFINITE, INDEFINITE], ids=["spd", "indef"])
def test_solution_matches_numpy(eigenvalues, block):
    a_NN, b_N, product, unravel = system(eigenvalues)
    solution = jax.jit(lambda b: Dense(block=block).solve(System(product, b)))(
        unravel(b_N)
    )
    assert relative_error(solution.x, np.linalg.solve(a_NN, b_N)) < 1e-12
    assert float(jnp.linalg.norm(solution.residual["b"][0])) < 1e-11
    indefinite = eigenvalues[0] < 0
    reason = Reason.NEGATIVE_CURVATURE if indefinite else Reason.CONVERGED
    assert solution.reason == reason
    assert bool(solution.indefinite) == indefinite
    assert solution.steps == 0


def test_the_matrix_is_the_product_of_every_unit_vector():
    a_NN, _, product, _ = system(INDEFINITE)
    assert relative_error(dense.materialise(product, TREE, 7), a_NN) < 1e-14


def test_a_singular_matrix_is_said_to_be_indefinite_and_gives_no_finite_solution():
    product = jax.tree_util.Partial(jax.tree.map, jnp.zeros_like)
    solution = Dense().solve(System(product, jax.tree.map(jnp.ones_like, TREE)))
    assert solution.reason == Reason.SINGULAR
    assert solution.indefinite
    assert not np.all(np.isfinite(solution.x["a"]))


def test_a_right_hand_side_that_is_not_finite_says_nothing_of_the_matrix():
    solution = Dense().solve(System(lambda v: 2 * v, jnp.full(3, jnp.nan)))
    assert solution.reason == Reason.NOT_FINITE
    assert not solution.indefinite


def test_a_matrix_that_cannot_fit_is_refused_with_its_size(monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda: 24 * 10**9)
    small = {"w": jnp.zeros((7960,), jnp.float32)}
    Dense().check_memory(small)
    large = {"w": jax.ShapeDtypeStruct((784, 1000), jnp.float32)}
    with pytest.raises(ValueError, match=r"784,000 unknowns .* 7,375.9 GB .*HessianF"):
        Dense().check_memory(large)


def test_the_memory_of_the_machine_is_known():
    assert 10**9 < memory.device_memory() < 10**14


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="block"):
        Dense(block=0)
