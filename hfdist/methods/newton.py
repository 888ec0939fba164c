"""Newton's method and damped Newton: the exact solve, for small networks."""

from dataclasses import dataclass, field

from hfdist.curvature import Curvature
from hfdist.damping import DampingRule
from hfdist.methods.method import Method, check_positive
from hfdist.methods.second_order import Choice, second_order
from hfdist.parallel import collectives
from hfdist.reduction import orthonormal
from hfdist.solvers.dense import Dense


@dataclass(frozen=True, kw_only=True)
class Newton(Method):
    """w ← w - α (∇²f(w) + λI)⁻¹ ∇f(w), by a dense factorisation (paper, eqs. 1, 2)."""

    damping: float = 0.0
    """Damping λ, or λ₀ where it adapts; 0 is Newton's method as it stands."""
    learning_rate: float = 0.5
    """Step size α."""
    curvature: Curvature = "hessian"
    """The matrix: exact Hessian, Gauss-Newton, or Hessian by finite differences."""
    damping_rule: DampingRule = "constant"
    """Keep λ, or let it follow the reduction ratio (Levenberg-Marquardt)."""
    dense: Dense = field(default_factory=Dense)

    def __post_init__(self):
        check_positive("damping", self.damping, or_zero=True)
        check_positive("learning_rate", self.learning_rate)

    def build(self, problem, mesh=None):
        def solve(product, b, x0, inner):
            """By the matrix in orthonormal coordinates, where `inner` is the plain."""
            del x0, inner
            # Each device computes its share of the columns.
            return self.dense.solve(product, b, collectives(mesh).map)

        choice = Choice(
            curvature=self.curvature,
            solve=solve,
            coordinates=orthonormal,
            damping=self.damping,
            damping_rule=self.damping_rule,
            learning_rate=self.learning_rate,
            whole_batch=True,
        )
        return second_order(problem, mesh, choice)
