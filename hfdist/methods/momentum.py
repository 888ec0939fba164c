"""Gradient descent with momentum, by default Nesterov's."""

from dataclasses import dataclass

import optax

from hfdist.checks import Fraction
from hfdist.methods.first_order import FirstOrder


@dataclass(frozen=True, kw_only=True)
class Momentum(FirstOrder):
    """m ← g + β m, w ← w - α (g + β m) with g = ∇f(w) (Sutskever et al. 2013).

    Without `nesterov` it is the classical w ← w - α m (Polyak 1964).
    """

    momentum: Fraction = 0.9
    """β, what is kept of the steps before."""
    nesterov: bool = True
    """Step by the gradient as it would be after the momentum's own step."""

    def optimizer(self):
        return optax.sgd(self.rate, momentum=self.momentum, nesterov=self.nesterov)
