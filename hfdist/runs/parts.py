"""Arrays that processes have shared out, on the disk: each writes what it has.

An array is cut into pieces: what one device has of it, or less. A process's pieces
stand one after the other, as bytes, in a file of its own, and the checkpoint's record
has a row for each. Who reads takes the pieces that its own ranges meet, one at a time:
so no process holds more of an array than its devices do, and one piece.
"""

import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

LARGEST = 2**26  # bytes of a piece: it is read whole, for its checksum

Row = Sequence[Any]  # what the record says of a piece: Piece without the file
Cut = tuple[str, list[int], np.ndarray]  # array, start, values


class Piece(NamedTuple):
    """A range of an array, in a file."""

    array: str  # its path in the checkpoint
    start: list[int]  # of the range, along each axis
    shape: list[int]
    at: int  # of its first byte
    size: int  # in bytes
    checksum: str  # CRC-32 of them
    file: Path

    def read(self) -> bytes:
        """Its bytes. Raises ValueError for damage."""
        with self.file.open("rb") as file:
            file.seek(self.at)
            raw = file.read(self.size)
        if (seen := _checksum(raw)) != self.checksum:
            raise ValueError(
                f"{self.array} from {self.start} on is {seen} in part "
                f"{self.file.name}, but was saved as {self.checksum}"
            )
        return raw


def is_shared(array: Any) -> bool:
    """Whether devices have, or are to have, different parts of an array."""
    sharding = getattr(array, "sharding", None)
    return sharding is not None and not sharding.is_fully_replicated


def cut(name: str, array: jax.Array) -> Iterator[Cut]:
    """Copies of the pieces of a shared array that this process is to write.

    Each range is that of one process, though several may have it.
    """
    for shard in array.addressable_shards:
        if shard.replica_id:
            continue
        first, *others = (rows.start or 0 for rows in shard.index)
        values = np.array(shard.data, order="C")
        rows = max(1, LARGEST * len(values) // values.nbytes)
        for at in range(0, len(values), rows):
            yield name, [first + at, *others], values[at : at + rows]


def write(file: Path, pieces: Iterable[Cut]) -> list[Row]:
    """Write pieces into a file: the rows of the record."""
    rows = []
    with file.open("wb") as out:
        for name, start, values in pieces:
            raw = values.tobytes()
            at = out.tell()
            rows.append([name, start, values.shape, at, len(raw), _checksum(raw)])
            out.write(raw)
    return rows


def pieces_in(folder: Path, rows: Sequence[Sequence[Row]]) -> dict[str, list[Piece]]:
    """The pieces of each array, by its path, of the rows that each process wrote."""
    found = defaultdict(list)
    for process, own in enumerate(rows):
        for row in own:
            found[row[0]].append(Piece(*row, file=folder / str(process)))
    return dict(found)


def assemble(pieces: Sequence[Piece], like: Any) -> Any:
    """An array like the one given, where that is, of the pieces that are needed here.

    Raises ValueError for damage.
    """

    def read(index: Any) -> np.ndarray:
        return _range(pieces, index, like)

    if isinstance(like, np.ndarray):
        return read([slice(None)] * like.ndim)
    return jax.make_array_from_callback(like.shape, like.sharding, read)


def placed(array: Any, like: Any) -> jax.Array:
    """An array of the host where another one is, or is to be: its parts alone."""
    return jax.make_array_from_callback(
        like.shape, like.sharding, np.asarray(array).__getitem__
    )


def _range(pieces: Sequence[Piece], index: Sequence[slice], like: Any) -> np.ndarray:
    bounds = zip(index, like.shape, strict=True)
    low, high = np.transpose([rows.indices(n)[:2] for rows, n in bounds])
    found, missing = np.empty(high - low, like.dtype), math.prod(high - low)
    for piece in pieces:
        start = np.maximum(low, piece.start)
        end = np.minimum(high, np.add(piece.start, piece.shape))
        if np.all(start < end):
            values = np.frombuffer(piece.read(), like.dtype).reshape(piece.shape)
            there = _box(start - piece.start, end - piece.start)
            found[_box(start - low, end - low)] = values[there]
            missing -= math.prod(end - start)
    if missing:
        raise ValueError(f"{pieces[0].array} is not all there")
    return found


def _box(start: np.ndarray, end: np.ndarray) -> tuple[slice, ...]:
    return tuple(map(slice, start, end))


def _checksum(raw: Any) -> str:
    return f"{zlib.crc32(raw):08x}"
