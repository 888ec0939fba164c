"""Batches of a run's data for what measures single updates, decoded on the device."""

import jax
import jax.numpy as jnp

from hfdist.data.idx import IDX, Examples, Split
from hfdist.data.pipeline import GlobalBatches, decode
from hfdist.problem import Batch


def first_batch(examples: Examples, size: int, seed: int, dtype: str) -> Batch:
    """The batch of a run's first step."""
    chunk = GlobalBatches(examples, size, seed).chunk(0, 1)
    return decode(jax.tree.map(lambda a: jnp.asarray(a[0]), chunk), dtype)


def mnist_batch(split: Split, size: int) -> Batch:
    """The first batch of MNIST images in float32."""
    return first_batch(IDX().load(split), size, seed=0, dtype="float32")
