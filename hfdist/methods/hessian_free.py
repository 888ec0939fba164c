"""Hessian-free Newton and Gauss-Newton: products and conjugate gradients."""

from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from hfdist import preconditioners
from hfdist.checks import NonNegative, known
from hfdist.choices import choices, chosen
from hfdist.errors import UsageError
from hfdist.methods.second_order import SecondOrder
from hfdist.preconditioner import Probes
from hfdist.sharing import Sharding
from hfdist.solvers.cg import CG

if TYPE_CHECKING:
    PreconditionerName = str
else:
    PreconditionerName = Literal[("none", *choices(preconditioners))]


# What HessianFree() is: λ that adapts, and one preconditioned direction a step with an
# exact rate and momentum.
UNTUNED: dict[str, Any] = {
    "damping": 1.0,
    "damping_rule": "next_batch",
    "learning_rate": 1.0,
    "step_rule": "two_term",
    "preconditioner": "kronecker",
    "probes": Probes(every=4, refresh=40),
    "cg": CG(max_steps=0),
}


@dataclass(frozen=True, kw_only=True)
class HessianFree(SecondOrder):
    """w ← w + α d with d from truncated CG on (C + λI) d = -∇f(w) (paper, Algorithm 2).

    curvature="gauss_newton" is Hessian-free Gauss-Newton (paper: λ = 4), "hessian"
    Hessian-free Newton (paper: λ = 32); both with α = 0.5.

    Without `damping` what is not given is `UNTUNED`, which needs no settings: λ adapts,
    preconditioned by Kronecker factors, with two-term steps. A damping is kept, with
    the paper's method around it.
    """

    shardings: ClassVar[tuple[Sharding, ...]] = get_args(Sharding)

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
        if undamped and self.curvature in ("hessian", "finite_difference"):
            raise UsageError(
                "undamped CG on the Hessian, which is indefinite away from a minimum: "
                "give damping > 0 (the paper's λ is 32), or curvature gauss_newton, or "
                "solve exactly with hfdist.Newton"
            )

    def check_sharding(self, sharding):
        super().check_sharding(sharding)
        if sharding == "params" and self.curvature == "finite_difference":
            raise UsageError(
                "curvature='finite_difference' goes by the norm of whole params: use "
                "curvature='hessian', or sharding='vectors'"
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


def _untuned_without_damping(init):
    @wraps(init)
    def untuned(self, **given):
        init(self, **(given if "damping" in given else UNTUNED | given))

    return untuned


HessianFree.__init__ = _untuned_without_damping(HessianFree.__init__)
