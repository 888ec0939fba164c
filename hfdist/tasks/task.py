"""The contract of a task: what is learnt, from which examples, and how it is reported.

A task is a frozen dataclass of settings. To add one, write one file beside this one, or
anywhere on the Python path; a config names its class in `Config(data=...)`.
"""

import abc
from dataclasses import dataclass
from typing import Any, Literal

import grain
import jax
import jax.numpy as jnp
from jax import Array

from hfdist.checks import Settings
from hfdist.models.model import Model
from hfdist.problem import Batch, Problem
from hfdist.pytree import PyTree
from hfdist.tasks.examples import Examples

Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True)
class Task(Settings, abc.ABC):
    """What a run learns.

    On the host `examples` are read; on the devices a batch of them is prepared, then
    seen by the problem's predict and loss. B: examples in a batch.
    """

    @abc.abstractmethod
    def examples(self, split: Split) -> Examples | grain.MapDataset:
        """The examples of a split, by index; of a MapDataset each is a dictionary.

        Raises UsageError for files that are not sound.
        """

    @abc.abstractmethod
    def problem(self, model: Model, seed: int) -> tuple[Problem, PyTree]:
        """predict, loss and the initial params of a model, drawn from the seed.

        Raises UsageError for a model that does not fit the examples.
        """

    def prepare(self, batch: Batch, dtype: str) -> Batch:
        """The batch that predict and loss are given, of one that was read.

        Both have leaves (B, …). By default real numbers are brought to the dtype.
        """
        return jax.tree.map(
            lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a,
            batch,
        )

    def figures(self, outputs: Any, batch: Batch) -> dict[str, Array]:
        """What an evaluation reports beside the loss, (B,) each: the mean is taken."""
        del outputs, batch
        return {}

    def report(self, means: dict[str, float]) -> dict[str, float]:
        """The figures of an evaluation, from their means and that of the loss.

        `means` holds "loss" beside the names of `figures`.
        """
        return {name: mean for name, mean in means.items() if name != "loss"}
