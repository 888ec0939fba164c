"""The IDX format: an array of bytes or integers behind a header.

Bytes 0, 0, type (08: unsigned byte, 0b and 0c: integers of 2 and 4 bytes), number of
dimensions; each dimension as a 32-bit integer; then the data. All integers are
big-endian (LeCun, Cortes & Burges, the MNIST database).
"""

import math
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hfdist.errors import UsageError
from hfdist.memory import host_memory
from hfdist.tasks.files import opened

Part = Literal["images", "labels"]
REMEDY = "fetch or copy it again"
# NumPy's name of the type, by the first four bytes of a file in hexadecimal.
TYPES: dict[Part, dict[str, str]] = {
    "images": {"00000803": "u1"},
    "labels": {"00000801": "u1", "00000b01": ">i2", "00000c01": ">i4"},
}
WORDS: dict[Part, str] = {
    "images": "unsigned bytes in 3 dimensions",
    "labels": "integers of 1, 2 or 4 bytes in 1 dimension",
}


def read(path: Path, part: Part) -> np.ndarray:
    """The array of a file, plain or .gz; plain images are mapped into memory.

    Raises UsageError for a file that cannot be read or is not sound.
    """
    with opened(path, REMEDY) as file:
        start, dtype, shape = _header(path, file, part)
        size = dtype.itemsize * math.prod(shape)
        if part == "images" and path.suffix != ".gz":
            _check_held(path, path.stat().st_size - start, shape, size)
            return np.memmap(path, dtype, "r", start, tuple(shape))
        array = np.frombuffer(_data(path, file, shape, size), dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def read_size(path: Path) -> tuple[int, ...]:
    """The size of the images in a file, by its header."""
    with opened(path, REMEDY) as file:
        _, _, (_, *size) = _header(path, file, "images")
    return tuple(size)


def times(shape: Any) -> str:
    """A shape in a message."""
    return " x ".join(map(str, shape))


def _header(
    path: Path, file: BufferedIOBase, part: Part
) -> tuple[int, np.dtype, list[int]]:
    """Where the data of a file begin, their type and their shape."""
    first, types = file.read(4), TYPES[part]
    if first.hex() not in types:
        raise UsageError(
            f"{path} does not hold {part}: it starts with {first.hex() or 'nothing'}, "
            f"not {' or '.join(types)} ({WORDS[part]}): give --data.dir files that do"
        )
    dimensions = first[3]
    sizes = file.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise UsageError(f"{path} ends in its header: it is truncated; {REMEDY}")
    shape = [int.from_bytes(sizes[at : at + 4]) for at in range(0, len(sizes), 4)]
    if 0 in shape:
        raise UsageError(
            f"{path} holds no examples: its header says {times(shape)}; give "
            f"--data.dir files with at least 1 example of 1 x 1 pixel"
        )
    return 4 + len(sizes), np.dtype(types[first.hex()]), shape


def _data(path: Path, file: BufferedIOBase, shape: list[int], size: int) -> bytes:
    """The rest of a file, of which no more is read than it should hold."""
    if size > (memory := host_memory()):
        raise UsageError(
            f"{path} should hold {size / 1e9:,.1f} GB ({times(shape)}, says its "
            f"header), and this machine has {memory / 1e9:,.1f} GB of memory: fetch it "
            f"again if it is damaged, or use fewer or smaller examples"
        )
    raw = file.read(size + 1)  # a byte more: past the end the checksum is compared
    _check_held(path, len(raw), shape, size)
    return raw


def _check_held(path: Path, held: int, shape: list[int], size: int) -> None:
    if held != size:
        words = "more" if held > size else f"only {held:,}"
        raise UsageError(
            f"{path} holds {words} bytes of data, but its header says {times(shape)}, "
            f"{size:,} bytes: it is truncated or damaged; {REMEDY}"
        )
