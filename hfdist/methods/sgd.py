"""Stochastic gradient descent, the paper's first-order baseline."""

from dataclasses import dataclass

import optax

from hfdist.methods.first_order import FirstOrder


@dataclass(frozen=True, kw_only=True)
class SGD(FirstOrder):
    """w ← w - α ∇f(w) (paper, section 4.1: α = 0.1)."""

    def optimizer(self):
        return optax.sgd(self.rate)
