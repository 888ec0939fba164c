"""IDX files, sound and broken, and the order of the batches."""

import numpy as np
import pytest

import idx_files
from hfdist.data import idx
from hfdist.data.idx import IDX, Examples
from hfdist.data.pipeline import GlobalBatches, chunks, decode


def test_the_shipped_mnist_is_whole():
    train, test = IDX().load("train"), IDX().load("test")
    assert train.inputs.shape == (60000, 784)
    assert test.inputs.shape == (10000, 784)
    assert np.bincount(test.labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip


def test_a_shipped_file_that_was_damaged_is_refused(tmp_path, monkeypatch):
    folder = idx_files.make_folder(tmp_path)
    monkeypatch.setattr(idx, "MNIST", folder)
    with pytest.raises(ValueError, match=r"wrong SHA-256.*reinstall"):
        IDX().load("train")


def test_files_plain_and_compressed(tmp_path):
    data = IDX(dir=idx_files.make_folder(tmp_path), classes=3)
    train, test = data.load("train"), data.load("test")
    assert train.inputs.shape == (100, 16)
    assert (train.inputs.reshape(100, 4, 4).sum(2).argmax(1) == train.labels).all()
    assert len(test.labels) == 30


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def truncate(folder):
    plain = folder / "train-images-idx3-ubyte"
    idx_files.write(plain, np.zeros((9, 4, 4)))
    plain.write_bytes(plain.read_bytes()[:-1])
    (folder / IMAGES).unlink()


BREAKAGES = {
    r"holds no file named train-labels": lambda d: (d / LABELS).unlink(),
    r"holds 2 files named train-labels": lambda d: (d / LABELS[:-3]).touch(),
    r"cannot be read \(.*\): fetch": lambda d: (d / IMAGES).write_bytes(b"not gzip"),
    r"cannot be read": lambda d: (d / IMAGES).write_bytes(
        (d / IMAGES).read_bytes()[:-30]
    ),
    r"starts with 00000801, not 00000803": lambda d: idx_files.write(
        d / IMAGES, np.zeros(100)
    ),
    r"holds 143 bytes .* 9 x 4 x 4: it is truncated": truncate,
    r"has 100 images but .* has 99 labels": lambda d: idx_files.write(
        d / LABELS, np.zeros(99)
    ),
    r"label 3 is outside 0 … 2: give --data.classes 4": lambda d: idx_files.write(
        d / LABELS, np.full(100, 3)
    ),
}


@pytest.mark.parametrize("message", BREAKAGES)
def test_a_broken_folder_is_refused_by_name(tmp_path, message):
    folder = idx_files.make_folder(tmp_path)
    BREAKAGES[message](folder)
    with pytest.raises(ValueError, match=message) as caught:
        IDX(dir=folder, classes=3).load("train")
    assert str(folder) in str(caught.value)


def numbered(n):
    """n examples whose input is their number."""
    return Examples(np.arange(n, dtype=np.uint8)[:, None], np.zeros(n, np.uint8))


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
    examples = Examples(np.zeros((60000, 1), np.uint8), np.zeros(60000, np.uint8))
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
    each = 10 // processes
    shares = [
        GlobalBatches(numbered(103), 10, 7, slice(p * each, (p + 1) * each)).chunk(3, 8)
        for p in range(processes)
    ]
    for name, array in whole.items():
        together = np.concatenate([share[name] for share in shares], axis=1)
        np.testing.assert_array_equal(together, array)


def test_without_a_seed_the_order_is_the_files():
    source = GlobalBatches(numbered(25), batch_size=10, seed=None)
    assert seen(source.chunk(0, 3)) == list(range(25))


def test_pixels_become_floats_between_0_and_1():
    batch = decode(GlobalBatches(numbered(256), 256, None).chunk(0, 1), "float32")
    np.testing.assert_allclose(batch["inputs"].ravel(), np.arange(256) / 255, 1e-6)
    assert batch["inputs"].dtype == np.float32
