"""Prediction of the next character of a text."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hfdist import losses
from hfdist.checks import Count
from hfdist.errors import UsageError, told
from hfdist.models.model import functional
from hfdist.problem import Batch, Problem
from hfdist.tasks.examples import Examples
from hfdist.tasks.files import opened
from hfdist.tasks.task import Task

TINYSHAKESPEARE = Path(__file__).parent / "tinyshakespeare" / "input.txt.gz"
# SHA-256 of the shipped text after decompression.
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
CHARACTERS = 0x110000  # code points of Unicode


@dataclass(frozen=True)
class Windows(Examples):
    """Windows of context + 1 tokens at multiples of the context.

    Each token but the first is one window's target, save the last ones, if they are
    fewer than the context.
    """

    tokens: np.ndarray  # (n,) whole numbers
    context: int

    def __len__(self):
        return max(0, (len(self.tokens) - 1) // self.context)

    def gather(self, places):
        starts = places[..., None] * self.context
        return {"tokens": self.tokens[starts + np.arange(self.context + 1)]}


@dataclass(frozen=True, kw_only=True)
class Text(Task):
    """The characters of a UTF-8 file, plain or .gz, each predicted from those before.

    The first 90 % are to train; the rest, the test split, is to validate. The
    vocabulary is the file's distinct characters, in their order in Unicode.
    """

    file: Path | None = None
    """The text; without it, the plays of Shakespeare that hfdist ships
    (tinyshakespeare: 1,115,394 characters, 65 distinct)."""
    context: Count = 64
    """Most characters that a prediction is made from; a window holds one more."""

    def examples(self, split):
        """tokens (n, context + 1), each a character's place in the vocabulary."""
        tokens, _ = self._tokens()
        cut = len(tokens) * 9 // 10
        windows = {
            "train": Windows(tokens[:cut], self.context),
            "test": Windows(tokens[cut:], self.context),
        }
        if any(len(one) < 2 for one in windows.values()):
            raise UsageError(
                f"{self._path()} has {len(tokens):,} characters, of which the last "
                f"tenth is no two windows of {self.context} + 1: give --data.file one "
                f"of at least {20 * self.context + 1:,}, or a smaller --data.context"
            )
        return windows[split]

    def problem(self, model, seed):
        _, vocabulary = self._tokens()
        module = model.build(self.context, len(vocabulary), seed)
        predict, params = functional(module)
        _check_outputs(model, predict, params, (2, self.context, len(vocabulary)))
        return Problem(predict, losses.next_token_cross_entropy), params

    def prepare(self, batch, dtype):
        """A window's tokens as inputs (B, T) and, one further, labels (B, T)."""
        del dtype
        rest = {name: entry for name, entry in batch.items() if name != "tokens"}
        tokens = batch["tokens"].astype(jnp.int32)
        return {**rest, "inputs": tokens[:, :-1], "labels": tokens[:, 1:]}

    def figures(self, outputs, batch):
        """The accuracy: the share of a window's characters that are most probable."""
        return {"accuracy": jnp.mean(jnp.argmax(outputs, -1) == batch["labels"], -1)}

    def report(self, means):
        """The loss in bits, beside the accuracy."""
        return {
            "bits_per_character": means["loss"] / math.log(2),
            "accuracy": means["accuracy"],
        }

    def _path(self) -> Path:
        return self.file or TINYSHAKESPEARE

    def _tokens(self) -> tuple[np.ndarray, str]:
        """The text in places of the vocabulary, in as few bytes as hold them."""
        codes = np.frombuffer(self._text().encode("utf-32-le"), np.uint32)
        present = np.zeros(CHARACTERS, bool)
        present[codes] = True
        vocabulary = np.flatnonzero(present)
        places = np.cumsum(present) - 1
        tokens = places.astype(np.min_scalar_type(len(vocabulary) - 1))[codes]
        return tokens, "".join(map(chr, vocabulary))

    def _text(self) -> str:
        path = self._path()
        remedy = "give --data.file a text" if self.file else "reinstall hfdist"
        with opened(path, remedy) as file:
            raw = file.read()
        if not self.file and hashlib.sha256(raw).hexdigest() != SHA256:
            raise UsageError(f"{path} is damaged (wrong SHA-256): reinstall hfdist")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{path} is no UTF-8 text: {error.reason} at byte {error.start:,}; "
                f"give --data.file one, by `iconv -t utf-8` of this"
            ) from None
        if not text:
            raise UsageError(f"{path} is empty: give --data.file a text")
        return text


def _check_outputs(model, predict, params, shape) -> None:
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
            f"{name} cannot read characters ({told(error)}): {remedy}"
        ) from error
    given = getattr(outputs, "shape", None)
    if given != shape:
        raise UsageError(
            f"{name} makes outputs {given} of characters {shape[:2]}: {remedy}"
        )
