"""The eigenvalues of a curvature matrix: all of them, or their distribution.

Exactly, from the dense matrix without its zero rows, by LAPACK in float64 (M products
and about 4/3 M³ multiply-adds); or from products alone: those of largest modulus by
eigenpairs.py, and the distribution of the others by quadrature.py. Either way the
spectrum is a sum of point masses: `counts` eigenvalues at `values`, N in all.

N: parameters, M: those whose row is not zero, K: eigenpairs known one by one,
V: point masses, G: points of a grid.
"""

import math
from typing import NamedTuple

import numpy as np

from hfdist.eigenpairs import largest_pairs
from hfdist.matrix import Matrix
from hfdist.memory import check_device_memory
from hfdist.pytree import parameter_count
from hfdist.spectrum.live import Live, live_rows
from hfdist.spectrum.quadrature import quadrature

# Up to this M all eigenvalues of a matrix take under half a minute on two cores.
EXACT_UP_TO = 4000
# Measured on the paper's network, trained for an epoch (N = 7,960, 10,000 examples):
# these give the trace to 0.4 % and the trace of the square to 0.1 %, one standard
# deviation. Without the eigenpairs, 1 % would take 900 and 3,700 probes.
PAIRS, PROBES, STEPS = 80, 16, 150
# Lanczos does not tell smaller eigenvalues from 0, as a fraction of the largest |λ|.
RESOLUTION = 1e-4
KERNEL = 0.15  # width of the smoothing kernel, in units of arsinh


class Spectrum(NamedTuple):
    """The eigenvalues of a symmetric matrix of order N."""

    method: str  # "exact" or "lanczos"
    values_V: np.ndarray
    counts_V: np.ndarray  # sum: N
    zero_below: float  # |λ| that counts as 0: roundoff, or Lanczos's resolution
    zeros: int  # exact: those |λ|; lanczos: the zero rows alone, a lower bound
    top_K: np.ndarray  # those of largest |λ|, largest first
    residuals_K: np.ndarray | None  # ‖C v - λ v‖ of these; None: exact to roundoff
    smallest_residual: float | None  # the same of the smallest one
    trace_error: float  # standard error of the trace

    @property
    def largest(self) -> float:
        """The largest eigenvalue."""
        return float(self.values_V.max())

    @property
    def smallest(self) -> float:
        """The smallest eigenvalue, for most matrices not among the top."""
        return float(self.values_V.min())

    @property
    def negative_share(self) -> float:
        """The fraction of all N eigenvalues below -zero_below."""
        counts_V = self.counts_V[self.values_V < -self.zero_below]
        return float(counts_V.sum() / self.counts_V.sum())

    def condition(self, damping: float) -> float:
        """(θ_max + λ) / (θ_min + λ) of C + λI; infinite if singular, nan if indefinite.

        Singular is what is 0 to `zero_below`.
        """
        largest, smallest = self.largest + damping, self.smallest + damping
        if abs(smallest) <= self.zero_below:
            return math.inf
        return largest / smallest if smallest > 0 else math.nan

    def moment(self, power: int) -> float:
        """Σ λᵖ: the trace of C, and of C²."""
        return float(self.counts_V @ self.values_V**power)

    def density(self, x_G: np.ndarray, scale: float) -> np.ndarray:
        """The density of x = arsinh(λ / scale), smoothed by a Gaussian kernel.

        Ghorbani et al. smooth λ itself; but eigenvalues spread over many decades, of
        which one width in λ shows a single one.
        """
        distances_GV = (x_G[:, None] - np.arcsinh(self.values_V / scale)) / KERNEL
        kernel_GV = np.exp(-(distances_GV**2) / 2) / (KERNEL * np.sqrt(2 * np.pi))
        return kernel_GV @ self.counts_V / self.counts_V.sum()


def check_memory(parameters: int, exactly: bool) -> None:
    """Raise UsageError where the numbers cannot fit into the device's memory."""
    dense = 3 * parameters**2  # the rule of Dense
    basis = (PROBES * STEPS + 4 * PAIRS) * parameters  # Lanczos vectors and ARPACK's
    numbers = dense if exactly else min(dense, basis)
    remedy = "do not ask for all of them" if exactly else "take a smaller network"
    what = f"the eigenvalues of {parameters:,} parameters need"
    check_device_memory(8 * numbers, what, remedy)


def exact(matrix: Live, top: int) -> Spectrum:
    """All eigenvalues, of (C + Cᵀ) / 2: rounding makes C differ from its transpose."""
    c_MM = matrix.dense()
    values_M = np.linalg.eigvalsh((c_MM + c_MM.T) / 2)
    zero_rows = matrix.parameters - len(values_M)
    values_N = np.concatenate([np.zeros(zero_rows), values_M])
    moduli_N = abs(values_N)
    roundoff = len(values_N) * matrix.eps * moduli_N.max()
    return Spectrum(
        method="exact",
        values_V=values_N,
        counts_V=np.ones_like(values_N),
        zero_below=roundoff,
        zeros=int(np.sum(moduli_N <= roundoff)),
        top_K=values_N[np.argsort(-moduli_N)[:top]],
        residuals_K=None,
        smallest_residual=None,
        trace_error=0.0,
    )


def from_products(matrix: Live, top: int, seed: int = 0) -> Spectrum:
    """The eigenvalues of largest |λ|, and the distribution of the others."""
    order = len(matrix.live_M)
    kept = min(max(PAIRS, top), order // 2)
    pairs = largest_pairs(matrix.product, order, kept, seed, matrix.eps)
    others = order - kept
    rule = quadrature(matrix.product, pairs.vectors, PROBES, min(STEPS, others), seed)
    zeros = np.zeros(matrix.parameters - order)
    known = np.append(pairs.values_K, zeros)
    residuals = np.append(pairs.residuals_K, zeros)
    weights_Pm = rule.weights_Pm * others
    traces_P = np.sum(weights_Pm * rule.nodes_Pm, axis=1)
    values_V = np.append(known, rule.nodes_Pm)
    smallest_residual = np.append(residuals, rule.residuals_Pm)[np.argmin(values_V)]
    roundoff = matrix.parameters * matrix.eps * abs(pairs.values_K[0])
    return Spectrum(
        method="lanczos",
        values_V=values_V,
        counts_V=np.append(np.ones_like(known), weights_Pm / PROBES),
        zero_below=RESOLUTION * abs(pairs.values_K[0]),
        zeros=len(zeros),
        top_K=pairs.values_K[:top],
        residuals_K=pairs.residuals_K[:top],
        smallest_residual=max(float(smallest_residual), roundoff),
        trace_error=float(np.std(traces_P, ddof=1) / np.sqrt(PROBES)),
    )


def spectrum(matrix: Matrix, top: int = 10, exactly: bool = False) -> Spectrum:
    """The spectrum of C: all its eigenvalues where that is quick, or told to be.

    Otherwise, for more than 4,000 params whose row is not zero, the `top` eigenvalues
    of largest modulus and the distribution of the others. Raises UsageError where the
    numbers cannot fit, or C is not finite.
    """
    check_memory(parameter_count(matrix.params), exactly)
    live = live_rows(matrix)
    if exactly or len(live.live_M) <= EXACT_UP_TO:
        return exact(live, top)
    return from_products(live, top)
