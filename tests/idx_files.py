"""Small IDX folders for the tests to read, whole or broken."""

import gzip
import struct
from pathlib import Path

import numpy as np


def write(path: Path, array: np.ndarray) -> None:
    """An IDX file of unsigned bytes, compressed if its name says so."""
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    raw = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)


def make_folder(folder: Path, train: int = 100, test: int = 30, classes: int = 3):
    """Noisy images whose bright row is their class: easy to learn."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for stem, count, suffix in (("train", train, ".gz"), ("t10k", test, "")):
        labels = rng.integers(0, classes, count)
        images = rng.integers(0, 100, (count, 4, 4))
        images[np.arange(count), labels] += 120
        write(folder / f"{stem}-images-idx3-ubyte{suffix}", images)
        write(folder / f"{stem}-labels-idx1-ubyte{suffix}", labels)
    return folder
