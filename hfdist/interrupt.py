"""SIGTERM and Ctrl-C end a run in order: it saves. A second one ends it at once."""

import os
import signal
import socket
import sys
import threading
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """A block in which the signals only raise a flag, `requested`.

    A thread reads them, so that the second is heard even while the main thread waits
    for the devices. Outside the main thread signals stay as they were.
    """

    def __init__(self):
        self._heard = threading.Event()
        self._handlers = {}

    @property
    def requested(self) -> bool:
        """Whether the run was asked to end."""
        return self._heard.is_set()

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._inbox, self._outbox = socket.socketpair()
            self._outbox.setblocking(False)
            self._wakeup = signal.set_wakeup_fd(self._outbox.fileno())
            self._handlers = {n: signal.signal(n, _noted) for n in SIGNALS}
            threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_):
        if self._handlers:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._wakeup)
            self._outbox.close()  # ends the thread

    def _listen(self) -> None:
        with self._inbox:
            while byte := self._inbox.recv(1):
                if byte[0] not in SIGNALS:
                    continue
                name = signal.Signals(byte[0]).name
                if self.requested:
                    print(f"hfdist: {name} again: leaving at once", file=sys.stderr)
                    os._exit(128 + byte[0])
                print(f"hfdist: {name}: saving, then leaving", file=sys.stderr)
                self._heard.set()


def _noted(number: int, frame: FrameType | None) -> None:
    """Python needs a handler for the number to reach the thread."""
