"""M = (diag G + λ)^exponent."""

import jax
import jax.numpy as jnp
from optax import tree

from hfdist.preconditioner import Preconditioner, Probes, averaging
from hfdist.pytree import widen


def diagonal(settings: Probes) -> Preconditioner:
    """M⁻¹ v = v / (E[V²] + λ)^exponent (Martens 2010, section 4.7).

    Martens has squared gradients of the examples in the place of E[V²] = diag G.
    """

    def init(params):
        return tree.zeros_like(widen(params))

    def update(squares, probe, kept, held):
        del held
        return jax.tree.map(lambda s, v: kept * s + (1 - kept) * v * v, squares, probe)

    def refresh(squares, damping, held):
        del damping, held
        return squares

    def apply(squares, damping, vector, held):
        del held

        def divided(s, v):
            # Where v is 0, as in what pads a shard, λ + s may be 0 too.
            return jnp.where(v == 0, 0, v / (s + damping) ** settings.exponent)

        return jax.tree.map(divided, squares, vector)

    def on_shared(functions, squares):
        return functions.vector(squares)

    return averaging(settings, init, update, refresh, apply, on_shared)
