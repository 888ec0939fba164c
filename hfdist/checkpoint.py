"""Checkpoints of a run: its whole state by step, stored by Orbax, verified here.

A checkpoint is one Orbax composite: `params` and `optimizer` (arrays) and `record`
(JSON: what else the next step depends on, and a checksum for all of it). Orbax writes
it in the background, under another name until it is whole. It does not notice damage,
nor fall back to an older step: `restore` compares every checksum, and `set_aside` moves
an unsound checkpoint out of the way.

In a run of many processes all of them save and restore, in one shared folder.
"""

import contextlib
import logging
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from hfdist.errors import UsageError

# Orbax warns of what is meant, and logs the errors that it raises. Of the writes that
# fail beside the one whose error it raises asyncio logs more, after our message.
for name in ("absl", "asyncio"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


# Raise it with every change to what a method's state holds.
FORMAT = 2


class Unsound(Exception):
    """A checkpoint that cannot be trusted, and why."""


class Checkpoints:
    """The checkpoints in a folder, which a save thins out.

    The newest `keep` stay (all, for None), and the steps divisible by `keep_every`.
    """

    def __init__(
        self,
        folder: Path,
        keep: int | None = None,
        keep_every: int | None = None,
        read_only: bool = False,
    ):
        self.folder, self.read_only = folder, read_only
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                keep_period=keep_every,
                cleanup_tmp_directories=not read_only,  # left by saves that were killed
                read_only=read_only,
            ),
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "optimizer": ocp.StandardCheckpointHandler(),
                "record": ocp.JsonCheckpointHandler(),
            },
        )

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, sound or not."""
        return sorted(self._manager.all_steps())

    def size(self, step: int) -> int:
        """Bytes on disk."""
        files = (self.folder / str(step)).rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())

    def save(self, step: int, params: Any, optimizer: Any, record: Any) -> None:
        """Save the state after a step; the disk is written in the background.

        Raises UsageError if it cannot be written, also for the save before; the older
        checkpoints stay whole.
        """
        seals = checksums(params=params, optimizer=optimizer, record=record)
        sealed = {"format": FORMAT, "record": record, "checksums": seals}
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            optimizer=ocp.args.StandardSave(optimizer),
            record=ocp.args.JsonSave(sealed),
        )
        with _explained(self.folder):
            if not self._manager.save(step, args=items):
                raise OSError(f"a later step is there already: {self.steps()}")

    def restore(self, step: int, **like: Any) -> tuple[dict[str, Any], Any]:
        """(items, record) of a step, for the items in like: params=…, optimizer=….

        Each comes back with the structure and on the devices of its like. Raises
        Unsound, and UsageError for an optimiser's state of another format, which is no
        damage.
        """
        if "optimizer" in like:
            self._check_format(step)
        arguments = {
            name: ocp.args.StandardRestore(
                jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
            )
            for name, tree in like.items()
        }
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(record=ocp.args.JsonRestore(), **arguments),
            )
            items = {name: restored[name] for name in like}
            record, saved = (restored["record"][k] for k in ("record", "checksums"))
            for name, seen in checksums(**items, record=record).items():
                if seen != (was := saved.get(name)):
                    raise ValueError(f"{name} is {seen}, but was saved as {was}")
        except Exception as error:  # whatever damage makes Orbax raise
            raise Unsound(_first_line(error)) from error
        return items, record

    def _check_format(self, step: int) -> None:
        try:
            record = ocp.args.Composite(record=ocp.args.JsonRestore())
            found = self._manager.restore(step, args=record)["record"].get("format", 1)
        except Exception as error:
            raise Unsound(_first_line(error)) from error
        if found != FORMAT:
            raise UsageError(
                f"checkpoint {step} in {self.folder} is of format {found}, and this "
                f"hfdist continues format {FORMAT}: use the hfdist that wrote it, or "
                f"start a new run from its params by --init-from"
            )

    def verify(self, step: int) -> int:
        """Compare every checksum of a step; the bytes of its arrays. Raises Unsound."""
        try:
            saved = self._manager.item_metadata(step)
            trees = {name: saved[name] for name in ("params", "optimizer")}
            like = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), trees)
        except Exception as error:
            raise Unsound(_first_line(error)) from error
        items, _ = self.restore(step, **like)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(items))

    def set_aside(self, step: int) -> Path:
        """Move an unsound checkpoint out of the way of new ones: where it is now."""
        aside = self.folder.with_name("unsound") / f"{step}-{time.time_ns()}"
        aside.parent.mkdir(exist_ok=True)
        shutil.move(self.folder / str(step), aside)
        return aside

    def reload(self) -> None:
        """Look again at what is in the folder."""
        self._manager.reload()

    def close(self) -> None:
        """Wait for the saves under way; raises UsageError if one failed."""
        with _explained(self.folder):
            self._manager.close()


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn what a failed save raises into one message with the remedy."""
    try:
        yield
    except Exception as error:  # of Orbax, TensorStore or the operating system
        raise UsageError(
            f"a checkpoint could not be saved in {folder} ({_first_line(error)}): the "
            f"earlier ones are whole; make room, and run the same command to continue "
            f"from the newest"
        ) from error


def checksums(**items: Any) -> dict[str, str]:
    """Type, shape and CRC-32 of every array or number, by its path."""
    seals = {}
    for path, leaf in jax.tree.leaves_with_path(items):
        # Replicated: any device's copy is the whole.
        whole = leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf
        array = np.asarray(whole)
        # A named tuple comes back as a dictionary where its class is not given.
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        seals[name] = (
            f"{array.dtype}{list(array.shape)} {zlib.crc32(array.tobytes()):08x}"
        )
    return seals


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
