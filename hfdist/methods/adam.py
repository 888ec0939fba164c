"""Adam, and with weight decay AdamW."""

from dataclasses import dataclass

import optax

from hfdist.checks import Fraction, NonNegative, Positive
from hfdist.methods.first_order import FirstOrder


@dataclass(frozen=True, kw_only=True)
class Adam(FirstOrder):
    """w ← w - α (m̂ / (√v̂ + ε) + μ w), with averages m of g = ∇f(w) and v of g ∘ g.

        m ← β₁ m + (1 - β₁) g,   v ← β₂ v + (1 - β₂) g ∘ g,
        m̂ = m / (1 - β₁ᵏ),   v̂ = v / (1 - β₂ᵏ)   at the k-th update

    (Kingma & Ba 2015; with μ > 0 AdamW, Loshchilov & Hutter 2019.)
    """

    learning_rate: Positive = 1e-3
    """Step size α, at its highest; in your own loop, an optax schedule too."""
    b1: Fraction = 0.9
    """β₁, what is kept of the gradients before."""
    b2: Fraction = 0.999
    """β₂, what is kept of their squares."""
    eps: Positive = 1e-8
    """ε, beside which a small gradient takes a small step."""
    weight_decay: NonNegative = 0.0
    """μ, of the params and not of f: `l2` is the penalty that is in f."""

    def optimizer(self):
        return optax.adamw(
            self.rate, self.b1, self.b2, self.eps, weight_decay=self.weight_decay
        )
