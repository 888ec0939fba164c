"""Newton's method and damped Newton: the exact solve, for small networks."""

from dataclasses import dataclass, field

from hfdist.checks import NonNegative
from hfdist.methods.second_order import SecondOrder
from hfdist.quadratics import Curvature
from hfdist.solvers.dense import Dense


@dataclass(frozen=True, kw_only=True)
class Newton(SecondOrder):
    """w ← w - α (∇²f(w) + λI)⁻¹ ∇f(w), by a dense factorisation (paper, eqs. 1, 2)."""

    damping: NonNegative = 0.0
    """Damping λ, or λ₀ where it adapts; 0 is Newton's method as it stands."""
    curvature: Curvature = "hessian"
    """The matrix: exact Hessian, Gauss-Newton, or Hessian by finite differences."""
    dense: Dense = field(default_factory=Dense)

    @property
    def solver(self):
        return self.dense
