"""A curvature matrix without its zero rows and columns, on the host in float64.

A pixel that is dark in every example has no derivative in its weights, nor has a unit
that is never on. N: parameters, M: those whose row of C is not zero, P: vectors.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from hfdist.errors import UsageError
from hfdist.matrix import Matrix
from hfdist.pytree import parameter_count

BLOCK = 128  # columns of the dense matrix computed at a time


class Live(NamedTuple):
    """C without its zero rows and columns, each of which is an eigenvalue 0 of C."""

    parameters: int  # N
    live_M: np.ndarray  # the places of the other rows
    product: Callable[[np.ndarray], np.ndarray]  # rows (P, M) -> rows (P, M)
    dense: Callable[[], np.ndarray]  # () -> (M, M)
    eps: float = 2**-52  # the relative error of the arithmetic behind the products


def live_rows(matrix: Matrix) -> Live:
    """The rows of C that are not zero. Raises UsageError where C is not finite."""
    count = parameter_count(matrix.params)
    # A row times a random vector is 0 if the row is, and otherwise with chance 0.
    probe_1N = np.random.default_rng(0).normal(size=(1, count))
    (image_N,) = matrix.rows(probe_1N)
    if not np.all(np.isfinite(image_N)):
        raise UsageError(
            "the curvature is not finite at these params: take those of an earlier step"
        )
    live_M = np.flatnonzero(image_N)

    def product(v_PM):
        v_PN = np.zeros((len(v_PM), count))
        v_PN[:, live_M] = v_PM
        return matrix.rows(v_PN)[:, live_M]

    def dense():
        order = len(live_M)
        height = min(BLOCK, order)  # of every block: one program does for all
        columns_M = [np.zeros((0, order))]
        for first in range(0, order, BLOCK):
            columns_M.append(product(np.eye(height, order, first)))
        return np.concatenate(columns_M)[:order]

    eps = float(jnp.finfo(matrix.dtype).eps)
    return Live(count, live_M, product, dense, eps)
