"""The inverse of A = Jᵀ J, to the digits of J and not of its square.

In a basis M = D⁻¹ V Λ^-½, made of the eigenvectors of D⁻¹ A D⁻¹, Mᵀ A M is I but for
what A has lost by rounding: as much as the square of J's condition. So A is formed anew
there, from columns J M that are nearly orthogonal, until it is I, and

    A⁻¹ = M Mᵀ

This is Cholesky-QR, repeated (Yamamoto, Nakatsukasa, Yanagisawa & Fukaya 2015).
"""

from collections.abc import Callable

import numpy as np

NEAR = 1e-6  # least over greatest eigenvalue, at which A⁻¹ has nine digits
PASSES = 3  # for a condition of J up to 1e13; a singular A takes more without an end


def inverse(
    in_basis: Callable[[np.ndarray], np.ndarray], matrix_NN: np.ndarray
) -> np.ndarray | None:
    """A⁻¹ (N, N); None where A is singular.

    in_basis: M -> Mᵀ A M, a pass over the data.
    """
    scale_N = np.sqrt(np.diagonal(matrix_NN))
    if not np.all(scale_N > 0):
        return None
    basis_NN = np.diag(1 / scale_N)
    matrix_NN = basis_NN @ matrix_NN @ basis_NN
    for _ in range(PASSES):
        values_N, vectors_NN = np.linalg.eigh(matrix_NN)
        kept_N = np.maximum(values_N, _negligible(values_N))
        basis_NN = basis_NN @ vectors_NN / np.sqrt(kept_N)
        if values_N[0] > NEAR * values_N[-1]:
            return basis_NN @ basis_NN.T
        matrix_NN = in_basis(basis_NN)
    return None


def _negligible(values_N: np.ndarray) -> float:
    """What an eigenvalue that is 0 may come to by rounding."""
    return len(values_N) * np.finfo(float).eps * np.max(values_N, initial=0.0)
