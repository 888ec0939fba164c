"""Files of a run directory, which a stranger may have made: no link is followed."""

import errno
import os
import secrets
import stat
from pathlib import Path


def open_regular(path: Path, flags: int) -> int:
    """A descriptor of a file that is neither a link, a folder nor a pipe.

    Raises OSError, also for those.
    """
    # Without O_NONBLOCK a pipe would wait for its other end.
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(None, "it is not a file", str(path))
    return descriptor


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file. Raises OSError."""
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
        return file.read()


def read_text(path: Path) -> str:
    """The text of a regular file. Raises OSError, and ValueError for other bytes."""
    return read_bytes(path).decode()


def replace_text(path: Path, text: str) -> None:
    """Replace a file, so that a reader finds the old one or the new one, whole.

    The name in between cannot be foreseen, and is refused if it exists.
    """
    part = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        with os.fdopen(open_regular(part, flags), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def leftovers(path: Path) -> list[Path]:
    """What replacing the file left where it was killed."""
    return list(path.parent.glob(f".{path.name}-{'?' * 16}"))
