"""A small convolutional network for square grey images.

B images of P = H W pixels, H high and W wide, in C channels.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from hfdist.checks import Count
from hfdist.errors import UsageError
from hfdist.models.mlp import Activation
from hfdist.models.model import Model


@dataclass(frozen=True, kw_only=True)
class ConvNet(Model):
    """Convolutions of stride 2 with an activation, then a linear layer.

    Kernels are LeCun-normal, biases zero. A stride takes the place of pooling.
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
                Convolution(before, after, self.kernel, rngs),
                getattr(jax.nn, self.activation),
            ]
            before, side = after, -(-side // 2)
        return nnx.Sequential(
            lambda x_BP: x_BP.reshape(shape),
            *layers,
            lambda x_BHWC: x_BHWC.reshape(len(x_BHWC), -1),
            nnx.Linear(before * side**2, outputs, rngs=rngs),
        )


class Convolution(nnx.Module):
    """A convolution of stride 2, its input padded by zeros as for TensorFlow's SAME.

    It is one matrix product with the patches of the image. In the loop of conjugate
    gradients XLA takes nine times as long on a CPU for what nnx.Conv's derivatives are.
    """

    def __init__(self, before: int, after: int, size: int, rngs: nnx.Rngs):
        self.size = size
        self.linear = nnx.Linear(size * size * before, after, rngs=rngs)

    def __call__(self, x_BHWC: Array) -> Array:
        return self.linear(patches(x_BHWC, self.size))


def patches(x_BHWC: Array, size: int) -> Array:
    """The size x size patches around every second pixel, (B, ⌈H/2⌉, ⌈W/2⌉, size² C)."""
    counts = [-(-length // 2) for length in x_BHWC.shape[1:3]]
    padding = [(0, 0)]
    for length, count in zip(x_BHWC.shape[1:3], counts, strict=True):
        total = max(2 * (count - 1) + size - length, 0)
        padding.append((total // 2, total - total // 2))
    x_BHWC = jnp.pad(x_BHWC, [*padding, (0, 0)])
    height, width = (2 * count - 1 for count in counts)
    shifted = [
        x_BHWC[:, i : i + height : 2, j : j + width : 2]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(shifted, -1)
