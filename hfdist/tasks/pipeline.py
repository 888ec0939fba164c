"""The Grain pipeline from examples by index to chunks of global batches.

A pipeline element is a chunk of whole batches, gathered by index in one call: for
images of MNIST's size, assembling batches from single examples is 40 times as slow, and
one element a batch still takes as long as the SGD steps it feeds.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import grain
import jax
import numpy as np
from jax import Array

from hfdist.tasks.examples import Entries, Examples
from hfdist.tasks.passes import Passes

Chunk = dict[str, Array]  # batches stacked, leaves (steps, B, …)
MOST_BYTES = 64e6  # of a chunk: several are in memory at a time


@dataclass(frozen=True)
class GlobalBatches:
    """The batches of a run: batch k is that of step k + 1, on any number of devices.

    The examples are reshuffled every epoch from the seed, which takes 8 bytes of memory
    for each of them. The last batch of an epoch is padded with examples of weight 0,
    and none is dropped.
    """

    examples: Examples
    batch_size: int
    seed: int | None  # None: in order
    # Those of a batch of so many to read, a process's share: slice(B) is all of them.
    rows: Callable[[int], slice] = slice
    # (number, size) …: from the batch of that number on they are of that size.
    growth: Sequence[tuple[int, int]] = ()

    @cached_property
    def passes(self) -> Passes:
        """Where each batch lies in the passes over the examples."""
        return Passes(len(self.examples), self.batch_size, self.growth)

    @property
    def per_epoch(self) -> int:
        """Batches in the first epoch."""
        return self.passes.steps(1)

    def most(self, steps: int, size: int) -> int:
        """Batches of a size in a chunk: so many steps, if memory is to hold them."""
        example = self.examples.gather(np.zeros(1, int))
        nbytes = size * sum(a.nbytes for a in jax.tree.leaves(example))
        return max(1, min(steps, int(MOST_BYTES // nbytes)))

    def chunk(self, first: int, count: int) -> Entries:
        """The batches first … first + count - 1, all of one size, stacked."""
        places, weights = zip(
            *map(self._batch, range(first, first + count)), strict=True
        )
        chunk, weights = self.examples.gather(np.stack(places)), np.stack(weights)
        return {**chunk, "weights": weights * chunk.get("weights", np.float32(1))}

    def _batch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The places of a batch's examples, and their weights."""
        epoch, position, size = self.passes.place(number)
        n = len(self.examples)
        places = np.arange(size)[self.rows(size)] + position
        weights = (places < n).astype(np.float32)
        places %= n
        if self.seed is not None:
            places = _shuffled(n, self.seed, epoch)[places]
        return places, weights


def chunks(
    batches: GlobalBatches, spans: Sequence[tuple[int, int]]
) -> Iterator[Entries]:
    """The chunks of the given (first batch, count), in order."""
    dataset = grain.MapDataset.source(spans).map(lambda span: batches.chunk(*span))
    # Without threads of Grain's own the host gathers while the devices compute.
    readers = batches.examples.readers
    options = grain.ReadOptions(num_threads=readers, prefetch_buffer_size=readers)
    return iter(dataset.to_iter_dataset(options))


@lru_cache(maxsize=2)
def _shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(n)
