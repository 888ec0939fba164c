"""The contract of a model, and how a Flax module becomes a pure predict function.

A model is a frozen dataclass of hyper-parameters with `build(inputs, outputs, seed)`.
To add one, write one file beside this one; a config imports its class.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass

from flax import nnx
from jax import Array

from hfdist.checks import Settings
from hfdist.problem import Batch
from hfdist.pytree import PyTree


@dataclass(frozen=True, kw_only=True)
class Model(Settings, abc.ABC):
    """Hyper-parameters of a network."""

    @abc.abstractmethod
    def build(self, inputs: int, outputs: int, seed: int) -> nnx.Module:
        """A module (B, inputs) -> (B, outputs), its params drawn from the seed."""


def functional(
    module: nnx.Module,
) -> tuple[Callable[[PyTree, Batch], Array], PyTree]:
    """predict(params, batch) and the params, a plain dict, of a module of one array."""
    graphdef, params = nnx.split(module, nnx.Param)

    def predict(params, batch):
        return nnx.merge(graphdef, params)(batch["inputs"])

    return predict, nnx.to_pure_dict(params)
