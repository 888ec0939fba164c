"""Newton's method and damped Newton: the exact solve, for small networks."""

from dataclasses import dataclass, field

from hfdist.checks import Count, Fraction, NonNegative, known
from hfdist.errors import UsageError
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
    output_space: bool = True
    """Solve for the outputs of the batch where these are the fewer: with the
    Gauss-Newton matrix, and λ > 0, the same step."""
    momentum: Fraction = 0.0
    """β: the step is near β times the one before where the batch says nothing, as a
    batch with fewer outputs than there are params does (SPRING)."""
    scaled_damping: bool = False
    """Damp by λD in place of λI, D the greatest diagonal of C so far, so that the units
    of the params are no matter (Moré 1978). For a whole batch every step."""
    tries: Count = 10
    """Most λ tried in one update, each with a factorisation of the one matrix, until a
    step is taken. Where λ follows ρ alone."""
    dense: Dense = field(default_factory=Dense)

    def __post_init__(self):
        super().__post_init__()
        if not known(self.momentum):
            raise UsageError(
                "momentum is a schedule, or traced by JAX: use a number, as it says "
                "whether there is a step to remember"
            )
        if self.scaled_damping and self.curvature in ("hessian", "finite_difference"):
            raise UsageError(
                f"scaled_damping goes by the diagonal of C, which of the "
                f"{self.curvature} may be negative: use curvature='gauss_newton'"
            )

    @property
    def solver(self):
        return self.dense

    @property
    def pull(self):
        return self.momentum

    @property
    def scaled(self):
        return self.scaled_damping

    @property
    def most_tries(self):
        return self.tries

    @property
    def by_outputs(self):
        undamped = known(self.damping) and self.damping == 0
        alike = not undamped and not self.scaled_damping
        return self.output_space and self.curvature == "gauss_newton" and alike
