"""Newton's method and damped Newton: the exact solve, for small networks."""

from dataclasses import dataclass, field

from hfdist.checks import NonNegative
from hfdist.coordinates import orthonormal
from hfdist.curvature import Curvature
from hfdist.methods.second_order import SecondOrder
from hfdist.solvers.dense import Dense


@dataclass(frozen=True, kw_only=True)
class Newton(SecondOrder):
    """w ← w - α (∇²f(w) + λI)⁻¹ ∇f(w), by a dense factorisation (paper, eqs. 1, 2)."""

    damping: NonNegative = 0.0
    """Damping λ, or λ₀ where it adapts; 0 is Newton's method as it stands."""
    curvature: Curvature = "hessian"
    """The matrix: exact Hessian, Gauss-Newton, or Hessian by finite differences."""
    dense: Dense = field(default_factory=Dense)

    def held(self, unknowns, examples):
        del examples
        return 3 * unknowns**2

    def coordinates(self, first, devices):
        return orthonormal(first, devices)

    def solve(self, product, b, start, inner):
        """By the matrix in orthonormal coordinates, where `inner` is the plain."""
        del start, inner
        return self.dense.solve(product, b)
