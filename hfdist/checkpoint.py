"""Checkpoints of a run, stored by Orbax: params and optimiser state by step."""

import time
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from hfdist.errors import UsageError


class Checkpoints:
    """The newest two checkpoints, by step; saving goes on in the background.

    In a run of many processes all of them save and restore, in one shared folder.
    """

    def __init__(self, folder: Path, minutes: float = 0.0):
        self._folder = folder
        self._seconds_between = 60 * minutes
        self._saved_at = time.monotonic()
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2, cleanup_tmp_directories=True
            ),
        )

    def latest(self) -> int | None:
        """The newest step saved."""
        return self._manager.latest_step()

    @property
    def due(self) -> bool:
        """Whether `minutes` have passed since the last save."""
        return time.monotonic() - self._saved_at >= self._seconds_between

    def save(self, step: int, params: Any, optimizer: Any) -> None:
        """Save the state after a step."""
        self._saved_at = time.monotonic()
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            optimizer=ocp.args.StandardSave(optimizer),
        )
        self._manager.save(step, args=items)

    def restore(self, step: int | None, **like: Any) -> tuple[int, dict[str, Any]]:
        """(step, the items named in like: params=…, optimizer=…), the newest for None.

        Each item comes back with the structure and on the devices of its like.
        """
        present = sorted(self._manager.all_steps())
        if not present or (step is not None and step not in present):
            wanted = (
                "no checkpoint" if step is None else f"no checkpoint of step {step}"
            )
            raise UsageError(f"{self._folder} has {wanted}; its steps are {present}")
        step = present[-1] if step is None else step
        items = {
            name: ocp.args.StandardRestore(
                jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
            )
            for name, tree in like.items()
        }
        return step, dict(self._manager.restore(step, args=ocp.args.Composite(**items)))

    def close(self) -> None:
        """Wait for the saves under way."""
        self._manager.close()
