"""One master for a run directory: whoever holds RUN_DIR/lock.

On one machine the operating system decides: it lets go of the lock of a process that
ends, however it ends. Between machines not every shared file system knows locks, or
learns of a machine that is gone. There the holder's heartbeat decides, a count in the
file: who finds another machine's name there waits to see whether the count moves.
"""

import errno
import fcntl
import itertools
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hfdist.cluster.processes import leave
from hfdist.errors import UsageError
from hfdist.runs.files import open_regular

NAME = "lock"
BEAT, SILENT = 2.0, 10.0  # seconds between beats; without one until given up


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the lock of a run directory for the time of a block.

    Raises UsageError, naming the holder, if another process holds it, and OSError if
    the file cannot be written. Who loses it to another machine, having given no sign
    of life for too long, ends at once.
    """
    path = run_dir / NAME
    descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
    holder = {"host": socket.gethostname(), "process": os.getpid()}
    holder |= {"machine": _machine(), "token": secrets.token_hex(8)}
    done = threading.Event()
    try:
        _acquire(descriptor, path)
        _write(descriptor, holder, 0)
        heart = threading.Thread(target=_beat, args=(path, descriptor, holder, done))
        heart.daemon = True
        heart.start()
        try:
            yield
        finally:
            done.set()
            heart.join(BEAT)
            with suppress(OSError):
                os.ftruncate(descriptor, 0)  # nobody needs to wait for a heartbeat
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path) -> None:
    holder = _read(path)
    known, local = True, holder.get("machine") in (None, _machine())
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if local:
            raise _refusal(path.parent, _read(path)) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        known = False  # a file system without locks
    if holder and not (known and local) and _beats(path, holder):
        raise _refusal(path.parent, holder)


def _beats(path: Path, holder: dict[str, Any]) -> bool:
    """Whether the count moves; clocks of machines need not agree."""
    deadline = time.monotonic() + SILENT
    while time.monotonic() < deadline:
        if _read(path) != holder:
            return True
        time.sleep(BEAT / 4)
    return False


def _beat(
    path: Path, descriptor: int, holder: dict[str, Any], done: threading.Event
) -> None:
    for count in itertools.count(1):
        if done.wait(BEAT):
            return
        with suppress(OSError):  # of a moment, or it is missed by the others
            now = _read(path)
            if now and now["token"] != holder["token"] and not done.is_set():
                leave(2, str(_refusal(path.parent, now)))
            _write(descriptor, holder, count)


def _write(descriptor: int, holder: dict[str, Any], count: int) -> None:
    text = json.dumps(holder | {"beat": count})
    os.pwrite(descriptor, text.ljust(500).encode(), 0)
    os.fsync(descriptor)  # through to a shared file system


def _read(path: Path) -> dict[str, Any]:
    """Who holds the lock; nobody, if it was let go or is being written."""
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
        text = file.read(500)
    with suppress(ValueError, RecursionError):
        holder = json.loads(text)
        if isinstance(holder, dict) and "token" in holder:
            return holder
    return {}


def _machine() -> str:
    """The running kernel: containers may share a host's name, or its locks."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def _refusal(run_dir: Path, holder: dict[str, Any]) -> UsageError:
    who = f"process {holder.get('process')} on {holder.get('host')}"
    return UsageError(
        f"{run_dir} is in use by {who if holder else 'another process'}: end it or "
        f"let it finish, or give another --run-dir"
    )
