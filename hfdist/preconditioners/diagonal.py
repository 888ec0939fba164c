"""M = (diag G + λ)^exponent."""

import jax
from optax import tree

from hfdist.preconditioner import Preconditioner, Probes, averaging
from hfdist.pytree import widen


def diagonal(settings: Probes) -> Preconditioner:
    """M⁻¹ v = v / (E[V²] + λ)^exponent (Martens 2010, section 4.7).

    Martens has squared gradients of the examples in the place of E[V²] = diag G.
    """

    def init(params):
        return tree.zeros_like(widen(params))

    def update(squares, probe, kept):
        return jax.tree.map(lambda s, v: kept * s + (1 - kept) * v * v, squares, probe)

    def refresh(squares, damping):
        del damping
        return squares

    def apply(squares, damping, vector):
        return jax.tree.map(
            lambda s, v: v / (s + damping) ** settings.exponent, squares, vector
        )

    return averaging(settings, init, update, refresh, apply)
