"""The distribution of a symmetric matrix's eigenvalues, from products with vectors.

Stochastic Lanczos quadrature (Ghorbani, Krishnan & Xiao 2019, "An investigation into
neural net optimization via Hessian eigenvalue density", algorithm 1): m steps of
Lanczos from a random unit vector give a tridiagonal matrix T = S diag(θ) Sᵀ, and

    uᵀ f(A) u ≈ Σⱼ S₁ⱼ² f(θⱼ),   exactly for polynomials f of degree below 2m.

Departure: the eigenvectors V of the eigenvalues of largest modulus are put in exactly,
and probes are drawn in their complement, as Hutch++ does for the trace (Meyer, Musco,
Musco & Woodruff 2021). The estimate stays unbiased, and what few huge eigenvalues add
to its variance, nearly all for a network, is gone. A Gaussian probe has a uniform
direction in the complement, so that E[uᵀ f(A) u] is its mean of f over eigenvalues.

M: order of the matrix, K: eigenpairs kept, P: probes, m: Lanczos steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Quadrature(NamedTuple):
    """Nodes and weights of each probe; those of one sum to 1."""

    nodes_Pm: np.ndarray
    weights_Pm: np.ndarray
    residuals_Pm: np.ndarray  # ‖A y - θ y‖ of the unit Ritz vector y of a node θ


def quadrature(
    product: Callable, v_MK: np.ndarray, probes: int, steps: int, seed: int
) -> Quadrature:
    """Lanczos quadrature from Gaussian probes orthogonal to the columns of v_MK."""
    from scipy.linalg import eigh_tridiagonal  # a fifth of a second

    probes_PM = np.random.default_rng(seed).normal(size=(probes, len(v_MK)))
    diagonal_Pm, off_diagonal_Pm = _tridiagonal(product, v_MK, probes_PM, steps)
    rules = [
        eigh_tridiagonal(diagonal_m, off_diagonal_m[:-1])
        for diagonal_m, off_diagonal_m in zip(diagonal_Pm, off_diagonal_Pm, strict=True)
    ]
    nodes_Pm = np.stack([nodes_m for nodes_m, _ in rules])
    s_Pmm = np.stack([s_mm for _, s_mm in rules])
    # A Q S = Q S diag(θ) + β q eᵀ S, with e the last unit vector.
    residuals_Pm = abs(off_diagonal_Pm[:, -1:] * s_Pmm[:, -1])
    return Quadrature(nodes_Pm, s_Pmm[:, 0] ** 2, residuals_Pm)


def _tridiagonal(product, v_MK, starts_PM, steps) -> tuple[np.ndarray, np.ndarray]:
    """The diagonals (P, m) and off-diagonals (P, m) of T; the last of these is unused.

    Every new vector is orthogonalised twice against all before it and V, or copies of
    converged eigenvalues would appear: 4 m (m + 2 K) M multiply-adds a probe, and
    P m M numbers of memory.
    """
    probes, order = starts_PM.shape
    q_PmM = np.zeros((probes, steps, order))
    diagonal_Pm, off_diagonal_Pm = np.zeros((2, probes, steps))
    next_PM = _orthogonal(starts_PM, q_PmM[:, :0], v_MK)
    next_PM /= np.linalg.norm(next_PM, axis=1, keepdims=True)
    for i in range(steps):
        q_PmM[:, i] = next_PM
        next_PM = product(next_PM)
        diagonal_Pm[:, i] = np.sum(q_PmM[:, i] * next_PM, axis=1)
        next_PM = _orthogonal(next_PM, q_PmM[:, : i + 1], v_MK)
        off_diagonal_Pm[:, i] = np.linalg.norm(next_PM, axis=1)
        # 0 where the probe's whole Krylov space is spanned: what follows has weight 0.
        next_PM /= np.maximum(off_diagonal_Pm[:, i], np.finfo(float).tiny)[:, None]
    return diagonal_Pm, off_diagonal_Pm


def _orthogonal(w_PM, q_PmM, v_MK) -> np.ndarray:
    """w without its parts along Q and V."""
    for _ in range(2):
        w_PM = w_PM - (w_PM @ v_MK) @ v_MK.T
        # One by one: numpy's products of stacks of matrices with vectors are slow.
        for w_M, q_mM in zip(w_PM, q_PmM, strict=True):
            w_M -= (q_mM @ w_M) @ q_mM
    return w_PM
