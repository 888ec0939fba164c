"""Files of tokens, against slices of what was written to them."""

import json
import math
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import together
from hfdist import CG, HessianFree, UsageError
from hfdist.models.transformer import Transformer
from hfdist.runs.config import Config
from hfdist.runs.train import train
from hfdist.tasks import tokens as tokens_file
from hfdist.tasks.tokens import Tokens

CONTEXT, VOCABULARY = 5, 300
WRITTEN = np.random.default_rng(0).integers(0, VOCABULARY, 203).astype("<u2")


@pytest.fixture
def folder(tmp_path):
    """As nanoGPT writes it."""
    WRITTEN.tofile(tmp_path / "train.bin")
    WRITTEN[:50].tofile(tmp_path / "val.bin")
    return tmp_path


def task(folder, **settings):
    return Tokens(
        **{"dir": folder, "context": CONTEXT, "vocabulary": VOCABULARY} | settings
    )


def test_windows_are_slices_of_the_file(folder):
    for split, count in (("train", 203), ("test", 50)):
        examples = task(folder).examples(split)
        starts = range(0, count - CONTEXT, CONTEXT)
        assert len(examples) == len(starts)
        windows = examples.gather(np.arange(len(starts)))["tokens"]
        assert type(windows) is np.ndarray
        assert windows.dtype == np.uint16
        expected = [WRITTEN[i : i + CONTEXT + 1] for i in starts]
        np.testing.assert_array_equal(windows, expected)


def test_a_file_is_mapped_and_read_ahead(folder):
    examples = task(folder).examples("train")
    assert isinstance(examples.tokens, np.memmap)
    assert examples.readers == 2


@pytest.mark.parametrize(
    ("name", "dtype"), [("a.bin", "uint32"), ("a.npy", "uint16"), ("a.npy", "int64")]
)
def test_other_numbers_are_the_same_windows(folder, name, dtype):
    other = WRITTEN.astype(dtype)
    path = folder / "elsewhere" / name
    path.parent.mkdir()
    other.tofile(path) if path.suffix == ".bin" else np.save(path, other)
    settings = {"dtype": dtype} if path.suffix == ".bin" else {}
    examples = task(folder, train=path, **settings).examples("train")
    own = task(folder).examples("train")
    places = np.arange(len(own)).reshape(2, -1)
    np.testing.assert_array_equal(
        examples.gather(places)["tokens"], own.gather(places)["tokens"]
    )


def test_the_labels_are_the_inputs_one_further(folder):
    batch = task(folder).examples("train").gather(np.arange(3))
    prepared = task(folder).prepare(jax.tree.map(jnp.asarray, batch), "float32")
    np.testing.assert_array_equal(prepared["inputs"], batch["tokens"][:, :-1])
    np.testing.assert_array_equal(prepared["labels"], batch["tokens"][:, 1:])


def saved(array):
    return lambda path: np.save(path, array)


def pickled(path):
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("a.bin", None, r"cannot be read \(No such file.*give --data.dir a folder"),
        ("a.bin", lambda path: path.mkdir(), "is no file: give --data.dir"),
        ("a.bin", lambda path: path.symlink_to(path.parent), "is no file"),
        ("a.bin", lambda path: path.symlink_to("a.bin"), r"cannot be read \(Too many"),
        ("a.bin", os.mkfifo, "is no file"),
        ("a.bin", lambda path: path.touch(), "is empty: give --data.dir"),
        ("a.bin", lambda path: path.write_bytes(b"abc"), "3 bytes, which are no whole"),
        ("a.bin", lambda path: path.write_bytes(b"a" * 20), "10 tokens.*at least 11"),
        ("a.npy", lambda path: path.touch(), r"cannot be read"),
        ("a.npy", lambda path: path.write_bytes(b"a" * 99), r"cannot be read"),
        ("a.npy", saved(np.zeros((4, 9), int)), r"has <i8 of shape \(4, 9\): give who"),
        ("a.npy", saved(np.zeros(99)), r"has <f8 of shape \(99,\): give whole"),
        ("a.npy", saved(np.zeros(99, ">u2")), r"has >u2 of shape"),
        ("a.npy", saved(np.zeros(0, int)), "0 tokens, which are no two windows"),
        ("a.npy", pickled, r"cannot be read \(.*Python objects"),
        ("a.npy", saved(np.full(99, -1)), "token -1 is negative: number the tokens"),
        (
            "a.npy",
            saved(np.full(99, 300)),
            r"token 300 is outside 0 … 299: give --data",
        ),
    ],
)
def test_files_that_are_no_sound_tokens(tmp_path, name, write, words):
    if write:
        write(tmp_path / name)
    with pytest.raises(UsageError, match=words):
        task(tmp_path, validation=name).examples("test")


def test_a_token_beyond_the_vocabulary_is_found_in_any_chunk(folder, monkeypatch):
    monkeypatch.setattr(tokens_file, "CHUNK", 10)
    for place in (0, 9, 10, 202):
        wrong = WRITTEN.copy()
        wrong[place] = VOCABULARY
        wrong.tofile(folder / "train.bin")
        with pytest.raises(UsageError, match=r"token 300 .*--data.vocabulary 301"):
            task(folder).examples("train")


def test_a_truncated_npy_file(folder):
    path = folder / "a.npy"
    np.save(path, WRITTEN)
    os.truncate(path, path.stat().st_size - 10)
    with pytest.raises(UsageError, match=r"cannot be read \(mmap length"):
        task(folder, train=path).examples("train")


def config(folder, run_dir, **settings):
    return Config(
        method=HessianFree(damping=4.0, cg=CG(max_steps=2)),
        model=Transformer(layers=1, heads=2, width=8),
        data=task(folder),
        batch_size=8,
        compilation_cache=None,
        run_dir=run_dir,
        **settings,
    )


def test_a_run_learns_from_the_file(folder):
    result = train(config(folder, folder / "run", epochs=3))
    assert result.test.figures["bits_per_token"] == result.test.loss / math.log(2)
    lines = map(json.loads, (folder / "run/metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert len(losses) == 15
    assert losses[-1] < losses[0] < 1.1 * math.log(VOCABULARY)


TOKENS = 2_000_000_000  # of two bytes: 4 GB
KILOBYTES = 2_000_000  # of data that the process may hold, files that are mapped apart
CONFIG = """
from pathlib import Path

from hfdist import HessianFree
from hfdist.models.transformer import Transformer
from hfdist.runs.config import Config
from hfdist.tasks.tokens import Tokens

config = Config(
    method=HessianFree(damping=4.0),
    model=Transformer(layers=1, heads=2, width=8),
    data=Tokens(dir=Path(__file__).parent, context=1024, vocabulary=300),
    batch_size=2,
    max_steps=20,
)
"""


@pytest.mark.slow
def test_a_file_larger_than_memory_trains(folder):
    """It is mapped, in a process that may hold less."""
    os.truncate(folder / "train.bin", 2 * TOKENS)  # zeros that take no disk
    np.resize(WRITTEN, 5000).tofile(folder / "val.bin")
    (folder / "config.py").write_text(CONFIG)
    run = f"{folder}/config.py --run-dir {folder}/run"
    process = together.start(
        *("bash", "-c"),
        f"ulimit -d {KILOBYTES}; {sys.executable} -m hfdist train {run}",
    )
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert len(together.train_losses(folder / "run")) == 20
