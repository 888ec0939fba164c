"""Hessian-free Newton and Gauss-Newton: products and conjugate gradients."""

from dataclasses import dataclass, field

from hfdist.curvature import Curvature
from hfdist.damping import DampingRule
from hfdist.errors import UsageError
from hfdist.methods.method import Method, check_positive
from hfdist.methods.second_order import Choice, second_order
from hfdist.reduction import gram
from hfdist.solvers.cg import CG


@dataclass(frozen=True, kw_only=True)
class HessianFree(Method):
    """w ← w + α d with d from truncated CG on (C + λI) d = -∇f(w) (paper, Algorithm 2).

    curvature="gauss_newton" is Hessian-free Gauss-Newton (paper: λ = 4), "hessian"
    Hessian-free Newton (paper: λ = 32); both with α = 0.5.
    """

    curvature: Curvature = "gauss_newton"
    """The matrix: Gauss-Newton, exact Hessian, or Hessian by finite differences."""
    damping: float = 4.0
    """Damping λ, or λ₀ where it adapts."""
    learning_rate: float = 0.5
    """Step size α."""
    damping_rule: DampingRule = "constant"
    """Keep λ, or let it follow the reduction ratio (Levenberg-Marquardt)."""
    warm_start: float = 0.0
    """Start CG from this multiple of the last solution, for one more product a step
    (Martens: 0.95); 0: start from 0."""
    cg: CG = field(default_factory=CG)

    def __post_init__(self):
        check_positive("damping", self.damping, or_zero=True)
        check_positive("learning_rate", self.learning_rate)
        check_positive("warm_start", self.warm_start, or_zero=True)
        if self.damping == 0 and self.curvature != "gauss_newton":
            raise UsageError(
                "undamped CG on the Hessian, which is indefinite away from a minimum: "
                "give damping > 0 (the paper's λ is 32), or curvature gauss_newton, or "
                "solve exactly with hfdist.Newton"
            )

    def build(self, problem, mesh=None):
        choice = Choice(
            curvature=self.curvature,
            solve=self.cg.solve,
            coordinates=gram,
            damping=self.damping,
            damping_rule=self.damping_rule,
            learning_rate=self.learning_rate,
            warm_start=self.warm_start,
        )
        return second_order(problem, mesh, choice)
