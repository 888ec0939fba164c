"""Hessian-free Newton and Gauss-Newton: products and conjugate gradients."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from hfdist import preconditioners
from hfdist.checks import NonNegative, known
from hfdist.choices import choices, chosen
from hfdist.errors import UsageError
from hfdist.methods.second_order import SecondOrder
from hfdist.preconditioner import Probes
from hfdist.solvers.cg import CG

if TYPE_CHECKING:
    PreconditionerName = str
else:
    PreconditionerName = Literal[("none", *choices(preconditioners))]


@dataclass(frozen=True, kw_only=True)
class HessianFree(SecondOrder):
    """w ← w + α d with d from truncated CG on (C + λI) d = -∇f(w) (paper, Algorithm 2).

    curvature="gauss_newton" is Hessian-free Gauss-Newton (paper: λ = 4), "hessian"
    Hessian-free Newton (paper: λ = 32); both with α = 0.5.
    """

    warm_start: NonNegative = 0.0
    """Start CG from this multiple of the last solution, for one more product a step
    (Martens: 0.95); 0: start from 0."""
    preconditioner: PreconditionerName = "none"
    """What CG is preconditioned by: nothing, or G's diagonal, Kronecker factors, or
    largest eigenvalues (nystrom)."""
    probes: Probes = field(default_factory=Probes)
    """How a preconditioner learns these, from random vectors."""
    cg: CG = field(default_factory=CG)

    def __post_init__(self):
        super().__post_init__()
        if not known(self.warm_start):
            raise UsageError(
                "warm_start is a schedule, or traced by JAX: use a number, as it says "
                "whether there is a start to remember"
            )
        if self.warm_start and not self.cg.max_steps:
            raise UsageError(
                "warm_start is where CG starts from, and cg.max_steps is 0: leave it "
                "out, or allow steps"
            )
        undamped = known(self.damping) and self.damping == 0
        if undamped and self.curvature != "gauss_newton":
            raise UsageError(
                "undamped CG on the Hessian, which is indefinite away from a minimum: "
                "give damping > 0 (the paper's λ is 32), or curvature gauss_newton, or "
                "solve exactly with hfdist.Newton"
            )

    @property
    def start_decay(self):
        return self.warm_start

    @property
    def preconditioning(self):
        if self.preconditioner == "none":
            return None
        make = chosen("preconditioner", self.preconditioner, preconditioners)
        return make(self.probes)

    @property
    def solver(self):
        return self.cg
