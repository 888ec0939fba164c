"""The deep autoencoder of the Hessian-free literature (Hinton & Salakhutdinov 2006)."""

from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from hfdist.checks import Count
from hfdist.models.mlp import Activation
from hfdist.models.model import Model


@dataclass(frozen=True, kw_only=True)
class Autoencoder(Model):
    """An encoder and its mirror image, with a linear code between them.

    784-1000-500-250-30 and back are Martens' layers for MNIST (2010, section 6.1), with
    his sparse initialisation (section 5): 15 incoming weights of each unit are drawn
    from N(0, 1), the others and the biases are 0.
    """

    encoder: tuple[Count, ...] = (1000, 500, 250, 30)
    """Width of each layer up to the code, which is the last."""
    activation: Activation = "sigmoid"
    """Function of every layer but the code and the outputs, which are linear."""
    incoming: Count = 15
    """Weights of each unit that are not 0 at the start."""

    def build(self, inputs, outputs, seed):
        def sparse(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
            return _sparse(key, shape, dtype, self.incoming)

        rngs = nnx.Rngs(seed)
        widths = (inputs, *self.encoder, *self.encoder[-2::-1], outputs)
        linear = {len(self.encoder) - 1, len(widths) - 2}
        layers = []
        for place, (before, after) in enumerate(pairwise(widths)):
            layers.append(nnx.Linear(before, after, kernel_init=sparse, rngs=rngs))
            if place not in linear:
                layers.append(getattr(jax.nn, self.activation))
        return nnx.Sequential(*layers)


def _sparse(
    key: Array, shape: tuple[int, ...], dtype: jnp.dtype, incoming: int
) -> Array:
    """A kernel (inputs, units) with `incoming` weights of each unit from N(0, 1)."""
    inputs, units = shape
    choose, draw = jax.random.split(key)
    ranks = jnp.argsort(jax.random.uniform(choose, (units, inputs)), axis=1)
    kept = incoming > jnp.argsort(ranks, axis=1).T
    return jnp.where(kept, jax.random.normal(draw, shape, dtype), 0)
