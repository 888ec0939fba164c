"""Prediction of the next token of a sequence: what the tasks of sequences share."""

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hfdist import losses
from hfdist.checks import Count
from hfdist.errors import UsageError, told
from hfdist.models.model import functional
from hfdist.problem import Batch, Problem
from hfdist.tasks.examples import Examples
from hfdist.tasks.task import Task


@dataclass(frozen=True)
class Windows(Examples):
    """Windows of context + 1 tokens at multiples of the context.

    Each token but the first is one window's target, save the last ones, if they are
    fewer than the context.
    """

    tokens: np.ndarray  # (n,) whole numbers, in memory or mapped from a file
    context: int

    @property
    def readers(self):
        return 2 if isinstance(self.tokens, np.memmap) else 0

    def __len__(self):
        return max(0, (len(self.tokens) - 1) // self.context)

    def gather(self, places):
        starts = places[..., None] * self.context
        return {"tokens": self.tokens[starts + np.arange(self.context + 1)]}


@dataclass(frozen=True, kw_only=True)
class NextToken(Task):
    """Each token predicted from those before it; `examples` returns Windows."""

    unit: ClassVar[str] = "token"
    """What a token is, in messages and reports."""

    context: Count = 64
    """Most tokens that a prediction is made from; a window holds one more."""

    @abc.abstractmethod
    def vocabulary_size(self) -> int:
        """V, the size of the vocabulary; tokens run from 0 to V - 1."""

    def problem(self, model, seed):
        size = self.vocabulary_size()
        predict, params = functional(model.build(self.context, size, seed))
        self._check_outputs(model, predict, params, (2, self.context, size))
        return Problem(predict, losses.next_token_cross_entropy), params

    def prepare(self, batch, dtype):
        """A window's tokens as inputs (B, T) and, one further, labels (B, T)."""
        del dtype
        rest = {name: entry for name, entry in batch.items() if name != "tokens"}
        tokens = batch["tokens"].astype(jnp.int32)
        return {**rest, "inputs": tokens[:, :-1], "labels": tokens[:, 1:]}

    def figures(self, outputs, batch):
        """The accuracy: the share of a window's tokens that are most probable."""
        return {"accuracy": jnp.mean(jnp.argmax(outputs, -1) == batch["labels"], -1)}

    def report(self, means):
        """The loss in bits, beside the accuracy."""
        return {
            f"bits_per_{self.unit}": means["loss"] / math.log(2),
            "accuracy": means["accuracy"],
        }

    def _check_outputs(self, model, predict, params, shape) -> None:
        """Raise UsageError for a model whose outputs are not logits (B, T, V)."""
        batch: Batch = {"inputs": jax.ShapeDtypeStruct(shape[:2], jnp.int32)}
        remedy = (
            "use one of tokens (B, T) to logits (B, T, V), such as "
            "hfdist.models.transformer.Transformer"
        )
        name = type(model).__name__
        try:
            outputs = jax.eval_shape(predict, params, batch)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"{name} cannot read {self.unit}s ({told(error)}): {remedy}"
            ) from error
        given = getattr(outputs, "shape", None)
        if given != shape:
            raise UsageError(
                f"{name} makes outputs {given} of {self.unit}s {shape[:2]}: {remedy}"
            )
