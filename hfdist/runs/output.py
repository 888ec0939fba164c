"""Output that nobody takes any more ends no run."""

import os
import sys
from typing import Any


def tolerate_lost_output() -> None:
    """Let stdout and stderr fall silent where they can no longer be written.

    A closed pipe, a terminal that is gone, or a full disk behind them is then no error:
    the run goes on, and metrics.jsonl has what was shown.
    """
    for descriptor in (0, 1, 2):
        # Or the next file that is opened, such as a checkpoint, would be taken for it.
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = _Tolerant(sys.stdout), _Tolerant(sys.stderr)


class _Tolerant:
    """A text stream whose errors turn it into /dev/null."""

    def __init__(self, stream: Any):
        # None: it was closed before the start.
        self._stream = stream or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        self._stream.reconfigure(errors="backslashreplace")  # λ where only ASCII goes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._silence()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._silence()

    def _silence(self) -> None:
        # What is still in the buffer goes there too, or it fails again at the end.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
