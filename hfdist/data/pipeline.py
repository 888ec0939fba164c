"""The Grain pipeline from arrays in memory to chunks of global batches.

A pipeline element is a chunk of whole batches, gathered by index in one numpy call:
for images of this size, assembling batches from single examples is 40 times as slow,
and one element a batch still takes as long as the SGD steps it feeds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import grain
import numpy as np
from jax import Array

from hfdist.data.idx import Examples
from hfdist.problem import Batch

Chunk = dict[str, Array]  # batches stacked, leaves (steps, B, …)


@dataclass(frozen=True)
class GlobalBatches:
    """The batches of a run: batch k is that of step k + 1, on any number of devices.

    The examples are reshuffled every epoch from the seed. The last batch of an epoch is
    padded with examples of weight 0, and none is dropped.
    """

    examples: Examples
    batch_size: int
    seed: int | None  # None: in order
    # Those of every batch to read: a process's share.
    rows: slice = field(default_factory=lambda: slice(None))

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.examples.labels) // self.batch_size)

    def chunk(self, first: int, count: int) -> dict[str, np.ndarray]:
        """The batches first … first + count - 1, all of one epoch, stacked."""
        epoch, position = divmod(first, self.per_epoch)
        assert position + count <= self.per_epoch
        n = len(self.examples.labels)
        order = np.arange(n) if self.seed is None else _shuffled(n, self.seed, epoch)
        places = np.arange(count * self.batch_size).reshape(count, self.batch_size)
        places = places[:, self.rows] + position * self.batch_size
        rows = order[places % n]
        return {
            "inputs": self.examples.inputs[rows],
            "labels": self.examples.labels[rows].astype(np.int32),
            "weights": (places < n).astype(np.float32),
        }


def chunks(
    batches: GlobalBatches, spans: Sequence[tuple[int, int]]
) -> Iterator[dict[str, np.ndarray]]:
    """The chunks of the given (first batch, count), in order."""
    dataset = grain.MapDataset.source(spans).map(lambda span: batches.chunk(*span))
    # No threads of Grain's own: the host gathers while the devices compute.
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0)))


@lru_cache(maxsize=2)
def _shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(n)


def decode(batch: Batch, dtype: str) -> Batch:
    """Pixels from bytes to [0, 1], on the device."""
    return {**batch, "inputs": batch["inputs"].astype(dtype) / 255}
