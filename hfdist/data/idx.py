"""IDX files, the format of MNIST and its relatives.

Format: bytes 0, 0, type (08: unsigned byte, 0b and 0c: integers of 2 and 4 bytes),
number of dimensions; each dimension as a 32-bit integer; then the data. All integers
are big-endian (LeCun, Cortes & Burges, the MNIST database).
"""

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from hfdist.checks import Settings, Whole
from hfdist.errors import UsageError
from hfdist.memory import host_memory

Split = Literal["train", "test"]
Part = Literal["images", "labels"]
STEMS: dict[Split, str] = {"train": "train", "test": "t10k"}
# NumPy's name of the type, by the first four bytes of a file in hexadecimal.
TYPES: dict[Part, dict[str, str]] = {
    "images": {"00000803": "u1"},
    "labels": {"00000801": "u1", "00000b01": ">i2", "00000c01": ">i4"},
}
WORDS: dict[Part, str] = {
    "images": "unsigned bytes in 3 dimensions",
    "labels": "integers of 1, 2 or 4 bytes in 1 dimension",
}

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
    labels: np.ndarray  # (n,) integers


@dataclass(frozen=True, kw_only=True)
class IDX(Settings):
    """Images and labels in four IDX files, plain or .gz, named as MNIST's are."""

    dir: Path | None = None
    """Folder of train-images*, train-labels*, t10k-images*, t10k-labels*; without it,
    the MNIST files that hfdist ships."""
    classes: Annotated[int, Whole(2)] = 10
    """Number of classes; labels run from 0 to classes - 1."""

    def load(self, split: Split) -> Examples:
        """The examples of a split. Raises UsageError for files that are not sound."""
        images_path, images = self._read(split, "images")
        labels_path, labels = self._read(split, "labels")
        if len(images) != len(labels):
            raise UsageError(
                f"{images_path} has {len(images)} images but {labels_path} has "
                f"{len(labels)} labels: they do not belong together"
            )
        self._check_labels(labels_path, labels)
        self._check_size(split, images_path, images.shape[1:])
        return Examples(images.reshape(len(images), -1), labels)

    def _read(self, split: Split, part: Part) -> tuple[Path, np.ndarray]:
        name = f"{STEMS[split]}-{part}"
        path = _find(self.dir or MNIST, name)
        with _opened(path) as file:
            header, dtype, shape = _header(path, file, part)
            raw = _data(path, file, shape, dtype.itemsize * math.prod(shape))
        if self.dir is None:
            digest = hashlib.sha256(header + raw).hexdigest()
            if digest != MNIST_SHA256[name]:
                raise UsageError(f"{path} is damaged (wrong SHA-256): reinstall hfdist")
        array = np.frombuffer(raw, dtype).reshape(shape)
        return path, array.astype(dtype.newbyteorder("="), copy=False)

    def _check_labels(self, path: Path, labels: np.ndarray) -> None:
        least, most = int(labels.min()), int(labels.max())
        if least < 0:
            raise UsageError(
                f"{path}: label {least} is negative: number the classes from 0"
            )
        if most >= self.classes:
            raise UsageError(
                f"{path}: label {most} is outside 0 … {self.classes - 1}: give "
                f"--data.classes {most + 1} or more, if it is right"
            )

    def _check_size(self, split: Split, path: Path, size: tuple[int, ...]) -> None:
        """Raise UsageError if the other split, where it is there, has another size."""
        folder = self.dir or MNIST
        name = f"{STEMS['test' if split == 'train' else 'train']}-images"
        if not _named(folder, name):  # to evaluate, one split will do
            return
        other = _find(folder, name)
        with _opened(other) as file:
            _, _, (_, *other_size) = _header(other, file, "images")
        if tuple(other_size) != size:
            raise UsageError(
                f"{path} has images of {_times(size)} pixels but {other} of "
                f"{_times(other_size)}: they do not belong together"
            )


def _named(folder: Path, name: str) -> list[Path]:
    """The files in a folder that go by a name; neither folders nor pipes."""
    try:
        paths = [path for path in folder.iterdir() if path.name.startswith(name)]
        return sorted(path for path in paths if "idx" in path.name and path.is_file())
    except OSError as error:
        raise UsageError(
            f"data folder {folder} cannot be read ({error.strerror}): give --data.dir "
            f"a folder of IDX files, such as {_such_as(name)}"
        ) from None


def _find(folder: Path, name: str) -> Path:
    found = _named(folder, name)
    if len(found) != 1:
        problem = f"holds {len(found)} files named" if found else "holds no file named"
        raise UsageError(
            f"data folder {folder} {problem} {name}*idx*: give --data.dir a folder "
            f"with one, such as {_such_as(name)}"
        )
    return found[0]


def _such_as(name: str) -> str:
    return f"{name}-idx{3 if 'images' in name else 1}-ubyte.gz"


@contextmanager
def _opened(path: Path) -> Iterator[BufferedIOBase]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        remedy = (
            "reinstall hfdist" if path.parent == MNIST else "fetch or copy it again"
        )
        why = str(error) or "too little memory"
        raise UsageError(f"{path} cannot be read ({why}): {remedy}") from None


def _header(
    path: Path, file: BufferedIOBase, part: Part
) -> tuple[bytes, np.dtype, list[int]]:
    """The first bytes of a file, and what they say of the rest: its type and shape."""
    first, types = file.read(4), TYPES[part]
    if first.hex() not in types:
        raise UsageError(
            f"{path} does not hold {part}: it starts with {first.hex() or 'nothing'}, "
            f"not {' or '.join(types)} ({WORDS[part]}): give --data.dir files that do"
        )
    dimensions = first[3]
    sizes = file.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise UsageError(
            f"{path} ends in its header: it is truncated; fetch or copy it again"
        )
    shape = [int.from_bytes(sizes[at : at + 4]) for at in range(0, len(sizes), 4)]
    if 0 in shape:
        raise UsageError(
            f"{path} holds no examples: its header says {_times(shape)}; give "
            f"--data.dir files with at least 1 example of 1 x 1 pixel"
        )
    return first + sizes, np.dtype(types[first.hex()]), shape


def _data(path: Path, file: BufferedIOBase, shape: list[int], size: int) -> bytes:
    """The rest of a file, of which no more is read than it should hold."""
    if size > (memory := host_memory()):
        raise UsageError(
            f"{path} should hold {size / 1e9:,.1f} GB ({_times(shape)}, says its "
            f"header), and this machine has {memory / 1e9:,.1f} GB of memory: fetch it "
            f"again if it is damaged, or use fewer or smaller examples"
        )
    raw = file.read(size + 1)  # a byte more: past the end the checksum is compared
    if len(raw) != size:
        held = "more" if len(raw) > size else f"only {len(raw):,}"
        raise UsageError(
            f"{path} holds {held} bytes of data, but its header says {_times(shape)}, "
            f"{size:,} bytes: it is truncated or damaged; fetch or copy it again"
        )
    return raw


def _times(shape: Any) -> str:
    return " x ".join(map(str, shape))
