"""The order of the batches, and where their examples may be."""

from functools import partial

import grain
import numpy as np
import pytest

from hfdist.errors import UsageError
from hfdist.tasks.examples import Arrays, Elements, readable
from hfdist.tasks.pipeline import MOST_BYTES, GlobalBatches, chunks


def numbered(n):
    """n examples whose input is their number."""
    inputs = np.arange(n, dtype=np.uint8)[:, None]
    return Arrays({"inputs": inputs, "labels": np.zeros(n, np.int32)})


def seen(batch):
    """The examples of a batch or chunk that have weight 1."""
    return batch["inputs"][..., 0][batch["weights"] == 1].tolist()


def test_an_epoch_is_every_example_once_padded_with_weight_0():
    source = GlobalBatches(numbered(103), batch_size=10, seed=0)
    assert source.per_epoch == 11
    epochs = [source.chunk(11 * epoch, 11) for epoch in range(3)]
    for epoch in epochs:
        assert epoch["inputs"].shape == (11, 10, 1)
        assert sorted(seen(epoch)) == list(range(103))
        assert epoch["weights"].sum(1).tolist() == [10] * 10 + [3]
    assert seen(epochs[0]) != seen(epochs[1]) != seen(epochs[2])


def test_mnist_has_938_steps_an_epoch():
    examples = Arrays({"inputs": np.zeros((60000, 1), np.uint8)})
    assert GlobalBatches(examples, batch_size=64, seed=0).per_epoch == 938


def test_the_order_depends_on_the_seed_alone_not_on_the_chunks():
    source = GlobalBatches(numbered(103), batch_size=10, seed=7)
    whole = source.chunk(11, 11)
    spans = [(11, 4), (15, 6), (21, 1)]
    parts = list(chunks(source, spans))
    for name in whole:
        np.testing.assert_array_equal(
            np.concatenate([part[name] for part in parts]), whole[name]
        )
    other = GlobalBatches(numbered(103), batch_size=10, seed=8).chunk(11, 11)
    assert seen(other) != seen(whole)


@pytest.mark.parametrize("processes", [2, 5])
def test_processes_read_their_shares_of_the_same_batches(processes):
    whole = GlobalBatches(numbered(103), batch_size=10, seed=7).chunk(3, 8)

    def rows(process, size):
        each = size // processes
        return slice(process * each, (process + 1) * each)

    shares = [
        GlobalBatches(numbered(103), 10, 7, partial(rows, p)).chunk(3, 8)
        for p in range(processes)
    ]
    for name, array in whole.items():
        together = np.concatenate([share[name] for share in shares], axis=1)
        np.testing.assert_array_equal(together, array)


def test_without_a_seed_the_order_is_the_files():
    source = GlobalBatches(numbered(25), batch_size=10, seed=None)
    assert seen(source.chunk(0, 3)) == list(range(25))


def test_weights_of_the_examples_own_multiply_those_of_the_padding():
    own = np.arange(1.0, 6.0)
    source = GlobalBatches(Arrays({"weights": own}), batch_size=3, seed=None)
    assert source.chunk(0, 2)["weights"].tolist() == [[1, 2, 3], [4, 5, 0]]


def squares(n):
    return grain.MapDataset.range(n).map(
        lambda i: {"inputs": np.float64([i, i * i]), "labels": i}
    )


def test_a_grain_data_set_gives_the_batches_of_the_same_arrays(tmp_path):
    """In memory, in a file that is mapped, and element by element."""
    numbers = np.arange(23)
    inputs = np.stack([numbers, numbers**2], axis=1).astype(float)
    np.save(tmp_path / "inputs.npy", inputs)
    mapped = np.load(tmp_path / "inputs.npy", mmap_mode="r")
    sources = [
        Arrays({"inputs": inputs, "labels": numbers}),
        Arrays({"inputs": mapped, "labels": numbers}),
        readable(squares(23)),
    ]
    assert [source.readers for source in sources] == [0, 2, 4]
    spans = [(0, 2), (2, 1), (3, 3)]
    expected, *others = (
        list(chunks(GlobalBatches(source, 8, seed=3), spans)) for source in sources
    )
    for other in others:
        for chunk, right in zip(other, expected, strict=True):
            assert chunk.keys() == right.keys()
            for name, array in chunk.items():
                np.testing.assert_array_equal(array, right[name])
                assert not isinstance(array, np.memmap)


def test_a_chunk_is_as_long_as_memory_allows():
    source = GlobalBatches(Arrays({"inputs": np.zeros((64, 1000))}), 16, seed=0)
    assert source.most(67, 16) == 67
    large = Arrays({"inputs": np.broadcast_to(0.0, (64, 200_000))})
    most = GlobalBatches(large, 16, seed=0).most(67, 16)
    assert most == MOST_BYTES // (16 * 200_000 * 8)
    assert GlobalBatches(large, 64, seed=0).most(67, 64) == 1


def test_what_is_no_source_of_examples_is_refused():
    with pytest.raises(UsageError, match=r"are a list: return .*Arrays, another"):
        readable([1, 2])
    with pytest.raises(UsageError, match="has no examples"):
        readable(Arrays({"inputs": np.zeros((0, 3))}))
    assert isinstance(readable(squares(2)), Elements)


def test_a_chunk_may_go_on_in_the_next_epoch():
    source = GlobalBatches(numbered(7), batch_size=4, seed=1)
    whole = source.chunk(0, 6)
    parts = [source.chunk(first, 2) for first in (0, 2, 4)]
    for name, array in whole.items():
        together = np.concatenate([part[name] for part in parts])
        np.testing.assert_array_equal(array, together)
    assert [sorted(seen(part)) for part in parts] == [list(range(7))] * 3
