"""Batches of a task for what measures single updates, prepared on the device."""

import jax
import jax.numpy as jnp

from hfdist.problem import Batch
from hfdist.tasks.examples import Examples
from hfdist.tasks.idx import IDX
from hfdist.tasks.pipeline import GlobalBatches
from hfdist.tasks.task import Split


def first_batch(examples: Examples, size: int, seed: int) -> Batch:
    """The batch of a run's first step, as it is read."""
    chunk = GlobalBatches(examples, size, seed).chunk(0, 1)
    return jax.tree.map(lambda a: jnp.asarray(a[0]), chunk)


def mnist_batch(split: Split, size: int) -> Batch:
    """The first batch of MNIST images in float32."""
    batch = first_batch(IDX().examples(split), size, seed=0)
    return IDX().prepare(batch, "float32")
