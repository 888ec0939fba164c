"""Stochastic gradient descent, the paper's first-order baseline."""

from dataclasses import dataclass

import optax

from hfdist.methods.first_order import first_order
from hfdist.methods.method import Method, check_positive


@dataclass(frozen=True, kw_only=True)
class SGD(Method):
    """w ← w - α ∇f(w) (paper, section 4.1: α = 0.1)."""

    learning_rate: float = 0.1
    """Step size α."""

    def __post_init__(self):
        check_positive("learning_rate", self.learning_rate)

    def build(self, problem, mesh=None):
        return first_order(problem, mesh, optax.sgd(self.learning_rate))
