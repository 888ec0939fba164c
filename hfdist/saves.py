"""When a run saves: by minutes, by steps, and when it is told to."""

import time
from typing import Any

from hfdist.checkpoint import Checkpoints
from hfdist.config import Config


class Saves:
    """Saves the states of a run that went on from `step`."""

    def __init__(self, checkpoints: Checkpoints, config: Config, step: int):
        self._checkpoints = checkpoints
        self._seconds = 60 * config.checkpoint_minutes
        self._steps = config.checkpoint_steps
        self._saved = step, time.monotonic()

    def due(self, step: int) -> bool:
        """Whether it is time, by this process's clock or by the steps made."""
        saved_step, saved_at = self._saved
        if self._steps and step - saved_step >= self._steps:
            return True
        return time.monotonic() - saved_at >= self._seconds

    def save(self, step: int, carry: tuple[Any, Any], record: Any) -> None:
        """Save the state (params, optimizer) after a step."""
        self._checkpoints.save(step, *carry, record)
        self._saved = step, time.monotonic()
