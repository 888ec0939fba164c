"""Small IDX folders for the tests to read, whole or broken."""

import gzip
import struct
from pathlib import Path

import numpy as np

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4"}


def header(array: np.ndarray, kind: int = 0x08) -> bytes:
    """The first bytes of an IDX file."""
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes((0, 0, kind, array.ndim)) + shape


def write(path: Path, array: np.ndarray, kind: int = 0x08) -> None:
    """An IDX file, by default of unsigned bytes, compressed if its name says so."""
    write_raw(path, header(array, kind) + array.astype(TYPES[kind]).tobytes())


def write_raw(path: Path, raw: bytes) -> None:
    """A file of these bytes, compressed if its name says so."""
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


def label_anew(folder: Path, labels: dict[str, np.ndarray], kind: int) -> None:
    """Other labels for a folder's images: {"train": …, "t10k": …}."""
    for stem, array in labels.items():
        (old,) = folder.glob(f"{stem}-labels*")
        old.unlink()
        write(folder / f"{stem}-labels-idx1-int{old.suffix}", array, kind)
