"""What a step rule is given, and what it returns."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from hfdist.quadratics import Quadratic, Value
from hfdist.solvers.solution import Solution
from hfdist.solvers.system import System


class Proposal(NamedTuple):
    """What was solved for, in the coordinates of the solve."""

    system: System  # (C + λD) d = -g, D = I but for a damping that is scaled
    solution: Solution
    damping: Array  # (), λ
    metric: Callable[[Any], Any]  # v -> D v, both like the solution
    learning_rate: Array  # (), α
    model: Quadratic  # of f, without λ
    previous: Any  # the step before, like the solution; None unless the rule looks back


class Step(NamedTuple):
    """A step s, and what the quadratic model promises of it."""

    change: Any  # s, like the solution
    predicted_decrease: Array  # (), -⟨g, s⟩ - ½ ⟨s, C s⟩, without λ (Martens 2010)
    after: Value | None = None  # f(w + s), of a rule that knows it
    lowers: Array | None = None  # () bool, whether f is low enough there for that rule


Rule = Callable[[Proposal], Step]
