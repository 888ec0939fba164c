"""The multilayer perceptron; with its defaults, the paper's network (Figure 1)."""

from dataclasses import dataclass
from typing import Literal

import jax
from flax import nnx

from hfdist.checks import Count
from hfdist.models.model import Model

Activation = Literal["relu", "tanh", "sigmoid", "softplus", "gelu", "silu"]


@dataclass(frozen=True, kw_only=True)
class MLP(Model):
    """Linear layers with an activation between them; the outputs are linear.

    Kernels are LeCun-normal, biases zero. The paper does not state its width; a sweep
    puts it at 10: 784-10-10, 7,960 parameters.
    """

    hidden: tuple[Count, ...] = (10,)
    """Width of each hidden layer."""
    activation: Activation = "relu"
    """Function between the layers."""

    def build(self, inputs, outputs, seed):
        rngs = nnx.Rngs(seed)
        layers = []
        for width in self.hidden:
            layers += [
                nnx.Linear(inputs, width, rngs=rngs),
                getattr(jax.nn, self.activation),
            ]
            inputs = width
        return nnx.Sequential(*layers, nnx.Linear(inputs, outputs, rngs=rngs))
