"""Saving checkpoints: in the background, whole or not at all, and not too many."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from hfdist.cluster.processes import first_hears, is_first
from hfdist.errors import UsageError
from hfdist.runs.checkpoint import (
    ELSEWHERE,
    FORMAT,
    IN_PARTS,
    checksums,
    first_line,
    kind,
    mapped,
    named,
    on_host,
    orbax,
    record_checksum,
    steps,
)
from hfdist.runs.parts import Cut, Row, cut, is_shared, write

LATE = 600.0  # seconds that a process may write longer than the first one
UNFINISHED = ".unfinished"  # ends the name of what is no checkpoint yet, or no more


class Saver:
    """Saves checkpoints into a folder, and thins them out.

    The newest `keep` stay, and the steps divisible by `keep_every`; `run` says whose
    they are, and `note` is called once a checkpoint is known to be whole. Every process
    has one. Raises UsageError, here as in a save, if the folder cannot be written.
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
        self._keep, self._keep_every = keep, keep_every
        self._orbax, self._thread = orbax(), ThreadPoolExecutor(max_workers=1)
        self._saving: Future | None = None
        with _explained(folder):
            if is_first():
                folder.mkdir(parents=True, exist_ok=True)
                for left in folder.glob(f"*{UNFINISHED}"):  # by saves that were killed
                    shutil.rmtree(left)
        self._wait()

    def save(self, step: int, params: Any, optimizer: Any, record: Any) -> None:
        """Save the state after a step; the disk is written in the background.

        All processes call this with the same. The first one writes the arrays that all
        have, and each the pieces that it has of the others; there is a checkpoint
        once the first one knows all to be written. Waits for the save before, whose own
        part is whole when this returns. Raises UsageError if either cannot be written;
        the older checkpoints stay whole.
        """
        self._wait()
        items = {"params": params, "optimizer": optimizer}
        shared = {name: leaf for name, leaf in named(items) if is_shared(leaf)}
        parts: Callable[[], list[list[Row]]] = list
        # Copies, here and below: NumPy's arrays share the memory of JAX's on a CPU, and
        # the next step writes over it.
        if shared:
            pieces = [
                piece for name, leaf in shared.items() for piece in cut(name, leaf)
            ]
            parts = partial(self._write_part, step, pieces, first_hears(LATE))
        if not is_first():
            self._saving = self._thread.submit(parts)
            return
        with _explained(self.folder):
            if step <= max(steps(self.folder), default=-1):
                raise OSError(f"a later step is there already: {steps(self.folder)}")
        whole = mapped(
            lambda name, leaf: ELSEWHERE if name in shared else on_host(leaf).copy(),
            items,
        )
        elsewhere = {name: f"{kind(leaf)} {IN_PARTS}" for name, leaf in shared.items()}
        self._saving = self._thread.submit(
            self._write, step, whole, elsewhere, record, parts
        )

    def close(self) -> None:
        """Wait for the save under way. Raises UsageError if it failed."""
        self._wait()
        self._thread.shutdown()

    def _wait(self) -> None:
        saving, self._saving = self._saving, None
        with _explained(self.folder):
            if saving:
                saving.result()
        if self._note and steps(self.folder):
            self._note()
            self._note = None  # once is enough

    def _write_part(
        self, step: int, pieces: list[Cut], tell: Callable[[Any], list[Any]]
    ) -> list[list[Row]]:
        """Write this part; in process 0 the rows of all, once all are there."""
        folder = self._unfinished(step) / "parts"
        folder.parent.mkdir(exist_ok=True)
        folder.mkdir(exist_ok=True)
        return tell(write(folder / str(jax.process_index()), pieces))

    def _write(
        self,
        step: int,
        items: dict[str, Any],
        elsewhere: dict[str, str],
        record: Any,
        parts: Callable[[], list[list[Row]]],
    ) -> None:
        """Write a checkpoint, and give it its name when it is whole."""
        unfinished, rows = self._unfinished(step), parts()
        unfinished.mkdir(exist_ok=True)
        sealed = {
            "format": FORMAT,
            "run": self._run,
            "step": step,
            "record": record,
            "checksums": checksums(**items) | elsewhere,
            "parts": rows,
        }
        whole = unfinished / "whole"
        self._orbax.save(
            whole,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(items["params"]),
                optimizer=ocp.args.StandardSave(items["optimizer"]),
                record=ocp.args.JsonSave({**sealed, "seal": record_checksum(sealed)}),
            ),
        )
        if rows:
            (unfinished / "parts").rename(whole / "parts")
        whole.rename(self.folder / str(step))
        shutil.rmtree(unfinished)
        self._thin_out()

    def _thin_out(self) -> None:
        for old in steps(self.folder)[: -self._keep] if self._keep else []:
            if not (self._keep_every and old % self._keep_every == 0):
                # Under its own name it would be a damaged one if this were cut short.
                (self.folder / str(old)).rename(self._unfinished(old))
                shutil.rmtree(self._unfinished(old))

    def _unfinished(self, step: int) -> Path:
        return self.folder.absolute() / f"{step}{UNFINISHED}"


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
