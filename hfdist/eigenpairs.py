"""The eigenpairs of largest modulus of a symmetric matrix, from its products.

M: order of the matrix, K: eigenpairs, P: vectors multiplied at once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hfdist.errors import UsageError

TOLERANCE = 1e-7  # ‖A v - θ v‖ / |θ| of an eigenpair, or what the dtype allows


class Pairs(NamedTuple):
    """Eigenpairs A v = θ v, largest |θ| first."""

    values_K: Any
    vectors: Any  # unit vectors: columns (M, K), or a tree with leaves (K, …)
    residuals_K: Any  # ‖A v - θ v‖


def largest_pairs(
    product: Callable[[np.ndarray], np.ndarray],
    order: int,
    count: int,
    seed: int = 0,
    eps: float = 2**-52,
) -> Pairs:
    """The eigenpairs of largest |θ|, by ARPACK's restarted Lanczos, in float64.

    product takes and returns rows (P, M), exact to a relative `eps`. Raises UsageError
    for a matrix that is 0, or not finite, along a random vector.
    """
    from scipy.sparse import linalg  # takes as long to import as a small solve

    arpack: Any = linalg  # type checkers misread its untyped signatures
    start_M = np.random.default_rng(seed).normal(size=order)
    norm = np.linalg.norm(product(start_M[None]))
    if not 0 < norm < np.inf:
        raise UsageError(
            f"the matrix times a random vector has norm {norm}: its eigenvalues are "
            f"all 0, or not finite; look at the params and the weights"
        )
    operator = arpack.LinearOperator(
        (order, order), matvec=lambda v: product(v.reshape(1, -1))[0], dtype=np.float64
    )
    tolerance = max(TOLERANCE, 100 * eps)
    values_K, vectors_MK = arpack.eigsh(
        operator, k=count, which="LM", tol=tolerance, v0=start_M
    )
    places = np.argsort(-abs(values_K))
    values_K, vectors_MK = values_K[places], vectors_MK[:, places]
    rests_KM = product(vectors_MK.T) - values_K[:, None] * vectors_MK.T
    return Pairs(values_K, vectors_MK, np.linalg.norm(rests_KM, axis=1))
