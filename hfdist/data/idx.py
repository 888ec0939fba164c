"""IDX files of unsigned bytes, the format of MNIST and its relatives.

Format: bytes 0, 0, type (8: unsigned byte), number of dimensions; each dimension as a
big-endian 32-bit integer; then the data (LeCun, Cortes & Burges, the MNIST database).
"""

import gzip
import hashlib
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from hfdist.errors import UsageError

Split = Literal["train", "test"]

MNIST = Path(__file__).parent / "mnist"
# SHA-256 of the shipped files after decompression, the well-known values.
MNIST_SHA256 = {
    "train-images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


class Examples(NamedTuple):
    """A data set in memory; inputs stay bytes, a quarter of the memory traffic."""

    inputs: np.ndarray  # (n, features) uint8
    labels: np.ndarray  # (n,) uint8


@dataclass(frozen=True, kw_only=True)
class IDX:
    """Images and labels in four IDX files, plain or .gz, named as MNIST's are."""

    dir: Path | None = None
    """Folder of train-images*, train-labels*, t10k-images*, t10k-labels*; without it,
    the MNIST files that hfdist ships."""
    classes: int = 10
    """Number of classes; labels run from 0 to classes - 1."""

    def __post_init__(self):
        if self.classes < 2:
            raise UsageError(f"data.classes is {self.classes}: use 2 or more")

    def load(self, split: Split) -> Examples:
        """The examples of a split. Raises UsageError for files that are not sound."""
        stem = {"train": "train", "test": "t10k"}[split]
        images_path, images = self._read(f"{stem}-images", dimensions=3)
        labels_path, labels = self._read(f"{stem}-labels", dimensions=1)
        if len(images) != len(labels):
            raise UsageError(
                f"{images_path} has {len(images)} images but {labels_path} has "
                f"{len(labels)} labels: they do not belong together"
            )
        if len(labels) == 0:
            raise UsageError(f"{images_path} holds no examples")
        if labels.max() >= self.classes:
            raise UsageError(
                f"{labels_path}: label {labels.max()} is outside 0 … {self.classes - 1}"
                f": give --data.classes {labels.max() + 1} or more, if it is right"
            )
        return Examples(images.reshape(len(images), -1), labels)

    def _read(self, name: str, dimensions: int) -> tuple[Path, np.ndarray]:
        path = _find(self.dir or MNIST, name)
        raw = _read_bytes(path)
        if self.dir is None and hashlib.sha256(raw).hexdigest() != MNIST_SHA256[name]:
            raise UsageError(f"{path} is damaged (wrong SHA-256): reinstall hfdist")
        return path, _decode(path, raw, dimensions)


def _find(folder: Path, name: str) -> Path:
    found = sorted(folder.glob(f"{name}*ubyte*"))
    if len(found) != 1:
        problem = f"holds {len(found)} files named" if found else "holds no file named"
        raise UsageError(
            f"data folder {folder} {problem} {name}*ubyte*: give --data.dir a folder "
            f"with one, such as {name}-idx{3 if 'images' in name else 1}-ubyte.gz"
        )
    return found[0]


def _read_bytes(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(
            f"{path} cannot be read ({error}): fetch or copy it again"
        ) from None


def _decode(path: Path, raw: bytes, dimensions: int) -> np.ndarray:
    magic = bytes((0, 0, 8, dimensions))
    if raw[:4] != magic:
        raise UsageError(
            f"{path} is not an IDX file of unsigned bytes in {dimensions} "
            f"dimension(s): it starts with {raw[:4].hex()}, not {magic.hex()}"
        )
    header = 4 + 4 * dimensions
    shape = [int.from_bytes(raw[at : at + 4]) for at in range(4, header, 4)]
    data = np.frombuffer(raw[header:], np.uint8)
    if data.size != math.prod(shape):
        raise UsageError(
            f"{path} holds {data.size} bytes of data but its header says "
            f"{' x '.join(map(str, shape))}: it is truncated or damaged"
        )
    return data.reshape(shape)
