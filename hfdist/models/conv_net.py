"""A small convolutional network for square grey images."""

import math
from dataclasses import dataclass

import jax
from flax import nnx

from hfdist.checks import Count
from hfdist.errors import UsageError
from hfdist.models.mlp import Activation
from hfdist.models.model import Model


@dataclass(frozen=True, kw_only=True)
class ConvNet(Model):
    """Convolutions of stride 2 with an activation, then a linear layer.

    Kernels are LeCun-normal, biases zero. A stride in place of pooling leaves nothing
    in the network that has no second derivative but the activation.
    """

    channels: tuple[Count, ...] = (8, 16)
    """Channels of each convolution."""
    kernel: Count = 3
    """Width and height of each convolution's kernel, in pixels."""
    activation: Activation = "relu"
    """Function between the layers."""

    def build(self, inputs, outputs, seed):
        side = math.isqrt(inputs)
        if side**2 != inputs:
            raise UsageError(
                f"ConvNet takes square grey images, and {inputs} pixels make none: "
                f"use hfdist.models.mlp.MLP"
            )
        shape = (-1, side, side, 1)
        rngs, layers, before = nnx.Rngs(seed), [], 1
        for after in self.channels:
            layers += [
                nnx.Conv(before, after, (self.kernel,) * 2, strides=(2, 2), rngs=rngs),
                getattr(jax.nn, self.activation),
            ]
            before, side = after, -(-side // 2)
        return nnx.Sequential(
            lambda x_BP: x_BP.reshape(shape),
            *layers,
            lambda x_BHWC: x_BHWC.reshape(len(x_BHWC), -1),
            nnx.Linear(before * side**2, outputs, rngs=rngs),
        )
