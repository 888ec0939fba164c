"""SIGTERM, SIGHUP and Ctrl-C end a run in order: it saves. A second ends it at once."""

import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hfdist.cluster.processes import leave

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """A block in which the signals only set an event: the run was asked to end.

    A thread reads them, so that the second is heard even while the main thread waits
    for the devices. Outside the main thread signals stay as they were.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    inbox, outbox = socket.socketpair()
    outbox.setblocking(False)
    wakeup = signal.set_wakeup_fd(outbox.fileno())
    # Python needs a handler for the number to reach the thread.
    handlers = {
        number: signal.signal(number, lambda *_: None)
        for number in SIGNALS
        # Under nohup a terminal that closes is no reason to stop.
        if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN)
    }
    threading.Thread(target=_listen, args=(inbox, asked), daemon=True).start()
    try:
        yield asked
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        outbox.close()  # ends the thread


def _listen(inbox: socket.socket, asked: threading.Event) -> None:
    with inbox:
        while byte := inbox.recv(1):
            if byte[0] not in SIGNALS:
                continue
            name = signal.Signals(byte[0]).name
            if asked.is_set():
                leave(128 + byte[0], f"{name} again: leaving at once")
            asked.set()
            with suppress(OSError):  # the terminal may be what has gone
                print(f"hfdist: {name}: saving, then leaving", file=sys.stderr)
