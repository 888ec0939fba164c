"""IDX files, sound and broken."""

import gzip
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import hfdist
import idx_files
from hfdist.errors import UsageError
from hfdist.models.mlp import MLP
from hfdist.runs.config import Config
from hfdist.runs.evaluate import evaluate
from hfdist.runs.train import train
from hfdist.tasks import idx
from hfdist.tasks.idx import IDX


def test_the_shipped_mnist_is_whole():
    train, test = (IDX().examples(split).entries for split in ("train", "test"))
    assert train["inputs"].shape == (60000, 784)
    assert test["inputs"].shape == (10000, 784)
    assert np.bincount(test["labels"]).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip


def test_a_shipped_file_that_was_damaged_is_refused(tmp_path, monkeypatch):
    folder = idx_files.make_folder(tmp_path)
    monkeypatch.setattr(idx, "MNIST", folder)
    with pytest.raises(UsageError, match=r"wrong SHA-256.*reinstall"):
        IDX().examples("train")
    (folder / IMAGES).write_bytes(b"not gzip")
    with pytest.raises(UsageError, match=r"cannot be read .*reinstall hfdist"):
        IDX().examples("train")


def test_files_plain_and_compressed(tmp_path):
    data = IDX(dir=idx_files.make_folder(tmp_path), classes=3)
    train, test = (data.examples(split) for split in ("train", "test"))
    pixels = train.entries["inputs"].reshape(100, 4, 4)
    assert (pixels.sum(2).argmax(1) == train.entries["labels"]).all()
    assert len(test) == 30
    # make_folder compresses the training images alone.
    assert (train.readers, test.readers) == (0, 2)
    assert isinstance(test.entries["inputs"], np.memmap)
    assert data.pixels() == 16


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES = "t10k-images-idx3-ubyte"


def raw(name, array, shape=None, kind=0x08):
    """A function that writes bytes, whose header may say another shape."""
    head = idx_files.header(np.empty(shape or array.shape, "V0"), kind)
    return lambda d: idx_files.write_raw(d / name, head + array.tobytes())


def huge(name, *shape):
    """A function that writes a file of this header, and no data."""
    head = bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape)
    return lambda d: idx_files.write_raw(d / name, head)


def array(name, *arguments):
    return lambda d: idx_files.write(d / name, *arguments)


def replaced(name, make):
    """A function that puts something else in a file's place."""

    def replace(folder):
        (folder / name).unlink()
        make(folder / name)

    return replace


def cut(name, count):
    return lambda d: (d / name).write_bytes((d / name).read_bytes()[:count])


PIXELS = np.zeros((100, 4, 4), np.uint8)
MOST = 2**32 - 1
BREAKAGES = [
    (
        r"holds no file named train-labels.*give --data.dir",
        lambda d: (d / LABELS).unlink(),
    ),
    (r"holds 2 files named train-labels", lambda d: (d / LABELS[:-3]).touch()),
    (r"no file named train-images", replaced(IMAGES, Path.mkdir)),
    (r"no file named train-images", replaced(IMAGES, os.mkfifo)),
    (
        r"no file named train-images",
        replaced(IMAGES, lambda p: p.symlink_to("/dev/zero")),
    ),
    (r"no file named train-images", replaced(IMAGES, lambda p: p.symlink_to(p))),
    (r"cannot be read \(.*\): fetch", lambda d: (d / IMAGES).write_bytes(b"not gzip")),
    (r"cannot be read \(Compressed file ended", cut(IMAGES, -30)),
    (r"cannot be read \(Compressed file ended", cut(IMAGES, 5)),
    (r"it starts with nothing, not 00000803", cut(IMAGES, 0)),
    (
        r"does not hold images: it starts with 00000801, not 00000803 \(unsigned",
        array(IMAGES, np.zeros(100)),
    ),
    (r"with 00000b03, not 00000803 \(unsigned bytes", array(IMAGES, PIXELS, 0x0B)),
    (
        r"labels: .* 00000803, not 00000801 or 00000b01 or 00000c01",
        array(LABELS, PIXELS),
    ),
    (
        r"00000d01, not 00000801 or 00000b01 or 00000c01 \(integers of 1, 2 or 4",
        array(LABELS, np.zeros(100), 0x0D),
    ),
    (r"starts with 00000901, not", array(LABELS, np.zeros(100), 0x09)),
    (
        r"ends in its header",
        lambda d: idx_files.write_raw(d / IMAGES, bytes((0, 0, 8, 3, 0, 0))),
    ),
    (
        r"only 143 bytes .* 9 x 4 x 4, 144 bytes: it is truncated",
        raw(IMAGES, np.zeros(143, np.uint8), (9, 4, 4)),
    ),
    (
        r"more bytes of data, .* 9 x 4 x 4, 144",
        raw(IMAGES, np.zeros(145, np.uint8), (9, 4, 4)),
    ),
    (
        r"only 99 bytes of data, .* 50, 100 bytes",
        raw(LABELS, np.zeros(99, np.uint8), (50,), 0x0B),
    ),
    (
        r"should hold 79,228,.* GB \(4294967295 x 4294967295 x 4294967295, .*fetch",
        huge(IMAGES, MOST, MOST, MOST),
    ),
    (r"should hold .* GB \(4294967295 x 28 x 28", huge(IMAGES, MOST, 28, 28)),
    (r"only 0 bytes of data, .* 1000000", huge(LABELS, 10**6)),
    (r"no examples: .* says 0 x 4 x 4; give", array(IMAGES, PIXELS[:0])),
    (r"no examples: .* 100 x 0 x 4; give .* 1 x 1 pixel", array(IMAGES, PIXELS[:, :0])),
    (r"no examples: .* 4294967295 x 0 x 4294967295", huge(IMAGES, MOST, 0, MOST)),
    (r"has 100 images but .* has 99 labels", array(LABELS, np.zeros(99))),
    (
        r"label 3 is outside 0 … 2: give --data.classes 4 ",
        array(LABELS, np.full(100, 3)),
    ),
    (
        r"label 255 is outside 0 … 2: give --data.classes 256 ",
        array(LABELS, np.full(100, 255)),
    ),
    (r"label 2147483647 is outside", array(LABELS, np.full(100, 2**31 - 1), 0x0C)),
    (
        r"label -5 is negative: number the classes from 0",
        array(LABELS, np.arange(-5, 95), 0x0B),
    ),
    (
        r"images of 4 x 4 pixels but .* of 2 x 8: they do not belong",
        array(TEST_IMAGES, PIXELS.reshape(100, 2, 8)),
    ),
    (r"t10k-images-idx3-ubyte does not hold images", cut(TEST_IMAGES, 3)),
    (r"holds 2 files named t10k-images", lambda d: (d / f"{TEST_IMAGES}.gz").touch()),
]


@pytest.mark.parametrize(("message", "break_it"), BREAKAGES)
def test_a_broken_folder_is_refused_by_name(tmp_path, message, break_it):
    folder = idx_files.make_folder(tmp_path)
    break_it(folder)
    with pytest.raises(UsageError, match=message) as caught:
        IDX(dir=folder, classes=3).examples("train")
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_alone_can_be_read(tmp_path, split):
    folder = idx_files.make_folder(tmp_path)
    for path in folder.glob({"train": "t10k*", "test": "train*"}[split]):
        path.unlink()
    assert IDX(dir=folder, classes=3).examples(split).entries["inputs"].shape[1] == 16


def test_a_bomb_is_not_unpacked(tmp_path):
    """A gigabyte of zeros behind a header of 4 bytes."""
    folder = idx_files.make_folder(tmp_path)
    zeros = gzip.compress(bytes(2**24))
    head = idx_files.header(np.empty((1, 2, 2)))
    (folder / IMAGES).write_bytes(gzip.compress(head) + 64 * zeros)
    tracemalloc.start()
    with pytest.raises(UsageError, match="more bytes of data"):
        IDX(dir=folder, classes=3).examples("train")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "name", ["a[/b]", "x*", "?", "{a,b}", "~", "\x07\x1b[31m", "é"]
)
def test_the_folder_may_have_any_name(tmp_path, name):
    folder = idx_files.make_folder(tmp_path / name)
    assert len(IDX(dir=folder, classes=3).examples("train")) == 100


@pytest.mark.parametrize("name", ["nowhere", "x" * 300, "file/below", "file", "loop"])
def test_a_folder_that_is_none_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UsageError, match=r"cannot be read \(.*\): give --data.dir"):
        IDX(dir=tmp_path / name).examples("train")


@pytest.mark.parametrize(
    ("kind", "classes"), [(0x08, 256), (0x0B, 1000), (0x0C, 10**6)]
)
def test_labels_of_one_two_and_four_bytes(tmp_path, kind, classes):
    folder = idx_files.make_folder(tmp_path)
    labels = np.linspace(0, classes - 1, 100).astype(int)
    idx_files.label_anew(folder, {"train": labels, "t10k": labels[-30:]}, kind)
    data = IDX(dir=folder, classes=classes)
    found = data.examples("train").entries["labels"]
    np.testing.assert_array_equal(found, labels)
    assert found.dtype == np.int32
    assert data.examples("test").entries["labels"].max() == classes - 1


def test_a_thousand_classes_are_trained_and_evaluated(tmp_path):
    folder = idx_files.make_folder(tmp_path / "data")
    labels = np.arange(100) * 10 + 9
    idx_files.label_anew(folder, {"train": labels, "t10k": labels[-30:]}, 0x0B)
    config = Config(
        method=hfdist.SGD(learning_rate=0.1),
        model=MLP(hidden=(2,)),
        data=IDX(dir=folder, classes=1000),
        max_steps=2,
        run_dir=tmp_path / "run",
        compilation_cache=None,
    )
    result = train(config)
    assert result.train_loss == pytest.approx(np.log(1000), rel=0.1)
    step, means = evaluate(tmp_path / "run")
    assert step == 2
    assert means == result.test


def test_pixels_become_floats_between_0_and_1():
    batch = IDX().prepare(
        {"inputs": np.arange(256, dtype=np.uint8)[:, None]}, "float32"
    )
    np.testing.assert_allclose(batch["inputs"].ravel(), np.arange(256) / 255, 1e-6)
    assert batch["inputs"].dtype == np.float32
