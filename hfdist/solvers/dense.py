"""The exact path: write the matrix down, then factorise it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cho_solve, solve

from hfdist.checks import Count
from hfdist.memory import check_device_memory
from hfdist.pytree import PyTree, parameter_count
from hfdist.solvers.solution import Reason, Solution
from hfdist.solvers.solver import Solver
from hfdist.solvers.system import System


@dataclass(frozen=True, kw_only=True)
class Dense(Solver):
    """Solve A x = b by Cholesky, or by LU where A is not positive definite.

    Memory: about 3 N² numbers, for A, its factor and one working copy. Cost: N products
    and N³/3 multiply-adds (Cholesky; LU twice that).
    """

    block: Count = 128
    """Columns of A computed at a time: more is faster and takes more memory."""

    def check_memory(self, b: PyTree) -> None:
        """Raise UsageError where the matrix for a right-hand side b cannot fit."""
        n = parameter_count(b)
        itemsize = max(leaf.dtype.itemsize for leaf in jax.tree.leaves(b))
        check_device_memory(
            3 * n * n * itemsize,
            f"three matrices for a dense solve in {n:,} unknowns need",
            "use hfdist.HessianFree, which needs only products, or a smaller network",
        )

    by_inner_products = False

    def solve(self, system):
        """x with A x = b, A materialised from its products by a `lax.map`.

        A has to be symmetric: the start, the inner product and the preconditioner are
        left aside. Raises UsageError, before anything is compiled, where A cannot fit.
        """
        return solved(
            self.written(partial(materialise, system.product, system.b), system.b),
            system,
        )

    def written(self, matrix, like):
        self.check_memory(like)
        return matrix(self.block)

    def held(self, unknowns, examples):
        del examples
        return 3 * unknowns**2


def solved(a_NN: Array, system: System) -> Solution:
    """x with A x = b of a system whose A is written down."""
    b_N, unravel = ravel_pytree(system.b)
    solve_N, positive = factorised(a_NN)
    x_N = solve_N(b_N)
    residual_N = b_N - a_NN @ x_N
    norm = jnp.maximum(jnp.linalg.norm(b_N), jnp.finfo(b_N.dtype).tiny)
    relative_residual = jnp.linalg.norm(residual_N) / norm
    reason = reason_of(positive, jnp.isfinite(relative_residual))
    x, residual = unravel(x_N), unravel(residual_N)
    return Solution(x, residual, relative_residual, jnp.int32(0), reason)


def factorised(a_NN: Array) -> tuple[Callable[[Array], Array], Array]:
    """b -> A⁻¹ b by Cholesky or else by LU, and whether A is positive definite."""
    factor_NN = jnp.linalg.cholesky(a_NN)
    positive = jnp.all(jnp.isfinite(jnp.diagonal(factor_NN)))

    def solve_N(b_N: Array) -> Array:
        return jax.lax.cond(
            positive,
            lambda: cho_solve((factor_NN, True), b_N),
            lambda: solve(a_NN, b_N),
        )

    return solve_N, positive


def reason_of(positive: Array, finite: Array) -> Array:
    """The Reason of a solve: whether A has a Cholesky factor, and what came of it."""
    definite = jnp.where(finite, Reason.CONVERGED, Reason.NOT_FINITE)
    other = jnp.where(finite, Reason.NEGATIVE_CURVATURE, Reason.SINGULAR)
    return jnp.where(positive, definite, other).astype(jnp.int32)


def shifted(matrix_NN: Array, shift: Array) -> Array:
    """The matrix plus `shift` times the identity, or plus a diagonal (N,)."""
    return matrix_NN + shift * jnp.eye(len(matrix_NN), dtype=matrix_NN.dtype)


def materialise(
    product: Callable[[PyTree], PyTree],
    like: PyTree,
    block: int,
) -> Array:
    """The symmetric matrix A (N, N) of v -> A v, `block` columns at a time."""
    # Stacked columns are rows: the transpose, which is A itself.
    return columns(lambda v: ravel_pytree(product(v))[0], like, block)


def columns(linear: Callable[[PyTree], Any], like: PyTree, block: int) -> Any:
    """linear(e) of each unit vector e like a tree, `block` at once: leaves (N, …)."""
    flat_N, unravel = ravel_pytree(like)

    def column(i):
        return linear(unravel(jnp.zeros_like(flat_N).at[i].set(1)))

    return jax.lax.map(column, jnp.arange(flat_N.size), batch_size=block)
