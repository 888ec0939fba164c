"""Saving checkpoints: in the background, whole or not at all, and not too many."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from hfdist.errors import UsageError
from hfdist.runs.checkpoint import (
    FORMAT,
    alone,
    checksums,
    first_line,
    handlers,
    on_host,
    record_checksum,
    steps,
)


class Saver:
    """Saves checkpoints into a folder, and thins them out.

    The newest `keep` stay, and the steps divisible by `keep_every`; `run` says whose
    they are, and `note` is called once a checkpoint is known to be whole. Raises
    UsageError, here as in a save, if the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        run: str,
        keep: int | None = None,
        keep_every: int | None = None,
        note: Callable[[], None] | None = None,
    ):
        self.folder, self._run, self._note = folder, run, note
        with _explained(folder):
            folder.mkdir(parents=True, exist_ok=True)  # alone, Orbax makes none
            self._manager = ocp.CheckpointManager(
                folder.absolute(),
                options=ocp.CheckpointManagerOptions(
                    create=False,
                    # Its barriers wait for a process whose write has failed.
                    multiprocessing_options=alone(),
                    max_to_keep=keep,
                    keep_period=keep_every,
                    cleanup_tmp_directories=True,  # left by saves that were killed
                    # In the background a folder that cannot be made is waited for.
                    async_options=ocp.AsyncOptions(
                        create_directories_asynchronously=False
                    ),
                ),
                item_handlers=handlers(),
            )
        self._note_whole()

    def save(self, step: int, params: Any, optimizer: Any, record: Any) -> None:
        """Save the state after a step; the disk is written in the background.

        Waits for the save before, which is whole when this returns. Raises UsageError
        if either cannot be written; the older checkpoints stay whole.
        """
        # Of JAX's arrays Orbax wants a part from each process. On a CPU NumPy's share
        # their memory, which the next step writes over: hence the copies.
        params, optimizer = jax.tree.map(
            lambda leaf: on_host(leaf).copy(), (params, optimizer)
        )
        sealed = {
            "format": FORMAT,
            "run": self._run,
            "step": step,
            "record": record,
            "checksums": checksums(params=params, optimizer=optimizer),
        }
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            optimizer=ocp.args.StandardSave(optimizer),
            record=ocp.args.JsonSave({**sealed, "seal": record_checksum(sealed)}),
        )
        with _explained(self.folder):
            if not self._manager.save(step, args=items):
                raise OSError(f"a later step is there already: {steps(self.folder)}")
        self._note_whole()

    def close(self) -> None:
        """Wait for the save under way. Raises UsageError if it failed."""
        with _explained(self.folder):
            self._manager.close()
        self._note_whole()

    def _note_whole(self) -> None:
        if self._note and steps(self.folder):
            self._note()
            self._note = None  # once is enough


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn what a failed save raises into one message with the remedy."""
    try:
        yield
    except Exception as error:  # of Orbax, TensorStore or the operating system
        raise UsageError(
            f"a checkpoint could not be saved in {folder} ({first_line(error)}): the "
            f"earlier ones are whole; make room, and run the same command to continue "
            f"from the newest"
        ) from error
