"""Files of examples, plain or compressed."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

from hfdist.errors import UsageError


@contextmanager
def opened(path: Path, remedy: str) -> Iterator[BufferedIOBase]:
    """The bytes of a file, decompressed if it is a .gz, for the time of a block.

    Raises UsageError, with the remedy, if it cannot be read there.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        why = str(error) or "too little memory"
        raise UsageError(f"{path} cannot be read ({why}): {remedy}") from None
