"""Checkpoints of a run: its whole state by step, stored by Orbax, verified here.

A checkpoint is one Orbax composite: `params` and `optimizer` (arrays) and `record`
(JSON: what else the next step depends on, whose it is, and checksums for all of it).
Orbax writes it in the background, under another name until it is whole. It neither
notices damage, nor tells it from a disk that is out of reach, nor from the checkpoint
of something else: `Checkpoints.restore` does.

In a run of many processes the first one saves what all have, and each its parts of what
they share out (`parts.py`); each reads by itself, in one shared folder. So a process
that fails leaves none waiting in Orbax.
"""

import contextlib
import errno
import json
import logging
import os
import shutil
import stat
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from hfdist.checks import shown
from hfdist.errors import UsageError
from hfdist.pytree import PyTree
from hfdist.runs.parts import Piece, assemble, is_shared, pieces_in, placed

# Orbax warns of what is meant, and logs the errors that it raises. Of the reads and
# writes that fail beside the one whose error it raises asyncio logs more, after our
# message, or they find Orbax's loop closed.
for name in ("absl", "asyncio"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


def _say_unless_late(unraisable: Any, say: Callable = sys.unraisablehook) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        say(unraisable)


sys.unraisablehook = _say_unless_late

# Raise it with every change to what a checkpoint holds.
FORMAT = 5
# What Orbax has in the place of an array that is in parts: it takes no empty ones.
ELSEWHERE = np.zeros((), np.int8)
IN_PARTS = "parts"  # in the place of its checksum
# What reading a file meets that is there and not as it was: damage. Any other error of
# the operating system is of the disk or the network, and may pass.
DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL}
FAULTS = {n: os.strerror(n) for n in errno.errorcode if n not in DAMAGE}


class Unsound(Exception):
    """A checkpoint that cannot be trusted, and why."""


class Unreadable(Exception):
    """A checkpoint that cannot be read now: the fault is the disk's, and may pass."""


def orbax() -> ocp.Checkpointer:
    """What writes and reads checkpoints: this process alone, waiting for no other."""
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"alone{me}"
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=options),
        params=ocp.StandardCheckpointHandler(),
        optimizer=ocp.StandardCheckpointHandler(),
        record=ocp.JsonCheckpointHandler(),
    )
    return ocp.Checkpointer(handler, multiprocessing_options=options)


class Checkpoints:
    """The checkpoints of a run in its folder, to read."""

    def __init__(self, folder: Path, run: str):
        self.folder, self._run = folder, run
        self._reader = orbax()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, sound or not."""
        return steps(self.folder)

    def size(self, step: int) -> int:
        """Bytes on disk."""
        files = self._path(step).rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())

    def record(self, step: int) -> dict[str, Any]:
        """What is saved beside the arrays of a step. Raises what restore does."""
        return self._record(step)["record"]

    def restore(self, step: int, **like: Any) -> tuple[dict[str, Any], Any]:
        """(items, record) of a step, for the items in like: params=…, optimizer=….

        Each comes back with the structure and on the devices of its like. Raises
        Unsound for damage, Unreadable for a disk out of reach, and UsageError for what
        is neither: a checkpoint of another format, run, step or structure.
        """
        sealed = self._record(step)
        if "optimizer" in like:
            self._check_format(step, sealed)
        for name, tree in like.items():
            self._check_structure(step, sealed["checksums"], name, tree)
        pieces = self._pieces(step, sealed)
        whole = mapped(
            lambda name, leaf: ELSEWHERE if name in pieces else _like(leaf), like
        )
        items = self._whole(step, sealed, whole)

        def put(name, leaf, array):
            if name in pieces:
                return assemble(pieces[name], leaf)
            return placed(array, leaf) if is_shared(leaf) else array

        with _judged():
            return mapped(put, like, items), sealed["record"]

    def verify(self, step: int) -> int:
        """Compare every checksum of a step; the bytes of its arrays.

        Raises what restore does.
        """
        sealed = self._record(step)
        self._check_format(step, sealed)
        with _judged():
            saved: Any = self._reader.metadata(self._plain(step)).item_metadata
            trees = {name: saved[name].tree for name in ("params", "optimizer")}
            like = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), trees)
        pieces = self._pieces(step, sealed)
        arrays = named(self._whole(step, sealed, like))
        with _judged():
            parts = [len(piece.read()) for found in pieces.values() for piece in found]
        return sum(parts) + sum(a.nbytes for name, a in arrays if name not in pieces)

    def set_aside(self, step: int) -> Path:
        """Move an unsound checkpoint out of the way of new ones: where it is now."""
        aside = self.folder.with_name("unsound") / f"{step}-{time.time_ns()}"
        try:
            aside.parent.mkdir(exist_ok=True)
            shutil.move(self._path(step), aside)
        except OSError as error:
            raise UsageError(
                f"checkpoint {step} in {self.folder} is unsound, and cannot be moved "
                f"to {aside} ({error.strerror}): move it away by hand"
            ) from None
        return aside

    def _path(self, step: int) -> Path:
        return self.folder.absolute() / str(step)

    def _plain(self, step: int) -> Path:
        """A step's folder. Raises Unsound for a link or a pipe, which Orbax follows."""
        folder = self._path(step)
        for path in (folder, *folder.rglob("*")):
            kind = stat.S_IFMT(path.lstat().st_mode)
            if kind not in (stat.S_IFREG, stat.S_IFDIR):
                raise Unsound(f"{path.name} is neither a file nor a folder")
        return folder

    def _pieces(self, step: int, sealed: dict[str, Any]) -> dict[str, list[Piece]]:
        """By their paths, the arrays that are in parts; older formats have none."""
        return pieces_in(self._path(step) / "parts", sealed.get("parts", []))

    def _whole(self, step: int, sealed: Any, like: dict[str, Any]) -> dict[str, Any]:
        """The items with those of their arrays that Orbax has, each checked."""
        arguments = {k: ocp.args.StandardRestore(tree) for k, tree in like.items()}
        restored = self._read(step, **arguments)
        items = {name: restored[name] for name in like}
        seen = checksums(**items)
        for name, was in sealed["checksums"].items():
            if name.partition(".")[0] not in like or was.endswith(IN_PARTS):
                continue
            if seen.get(name) != was:
                raise Unsound(
                    f"{name} is {seen.get(name, 'not there')}, but was saved as {was}"
                )
        return items

    def _read(self, step: int, **arguments: Any) -> Any:
        with _judged():
            return self._reader.restore(
                self._plain(step), args=ocp.args.Composite(**arguments)
            )

    def _record(self, step: int) -> dict[str, Any]:
        """What is saved beside the arrays, checked."""
        sealed = self._read(step, record=ocp.args.JsonRestore())["record"]
        if not isinstance(sealed, dict):
            raise Unsound("its record is damaged")
        seal, found = sealed.pop("seal", None), sealed.get("format", 1)
        if seal is None and found in (1, 2):  # which had none
            raise self._of_another_format(step, found)
        if seal != record_checksum(sealed):
            raise Unsound("its record is damaged")
        if sealed["run"] != self._run:
            raise UsageError(
                f"checkpoint {step} in {self.folder} is of another run "
                f"({shown(sealed['run'])}, and this is {shown(self._run)}): move it "
                f"away"
            )
        if sealed["step"] != step:
            raise UsageError(
                f"checkpoint {step} in {self.folder} is that of step {sealed['step']}: "
                f"give it back its name"
            )
        return sealed

    def _check_format(self, step: int, sealed: dict[str, Any]) -> None:
        if sealed["format"] != FORMAT:
            raise self._of_another_format(step, sealed["format"])

    def _of_another_format(self, step: int, found: Any) -> UsageError:
        return UsageError(
            f"checkpoint {step} in {self.folder} is of format {found}, and this hfdist "
            f"continues format {FORMAT}: use the hfdist that wrote it"
        )

    def _check_structure(
        self, step: int, saved: dict[str, str], item: str, like: PyTree
    ) -> None:
        here = {k: kind(v) for k, v in named({item: like})}
        there = {
            name: checksum.rpartition(" ")[0]
            for name, checksum in saved.items()
            if name.partition(".")[0] == item
        }
        for name in sorted(here.keys() | there.keys()):
            if here.get(name) != there.get(name):
                raise UsageError(
                    f"checkpoint {step} in {self.folder} does not fit this config: "
                    f"{name} is {there.get(name, 'not there')}, not "
                    f"{here.get(name, 'there')}"
                )


def steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint in a folder, sound or not."""
    if not folder.is_dir():
        return []
    # Until it is whole a checkpoint has another name.
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())


@contextlib.contextmanager
def _judged() -> Iterator[None]:
    """Turn what reading raises into Unreadable or Unsound."""
    try:
        yield
    except Exception as error:  # whatever damage makes Orbax raise
        if fault := _fault(error):
            raise Unreadable(fault) from error
        raise Unsound(first_line(error)) from error


def _fault(error: BaseException | None) -> str | None:
    """The operating system's word for what kept a file from being read, if any."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FAULTS:
            return FAULTS[error.errno]
        # TensorStore raises a ValueError that quotes it.
        text = str(error)
        for fault in FAULTS.values():
            if f": {fault}" in text:
                return fault
        error = error.__cause__ or error.__context__
    return None


def on_host(leaf: Any) -> np.ndarray:
    """A replicated array, of which any device's copy is the whole, as NumPy's."""
    whole = leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf
    return np.asarray(whole)


def kind(array: Any) -> str:
    """The type and shape of an array."""
    return f"{array.dtype}{list(array.shape)}"


def checksums(**items: Any) -> dict[str, str]:
    """Type, shape and CRC-32 of every array, by its path."""
    seals = {}
    for name, leaf in named(items):
        array = on_host(leaf)
        seals[name] = f"{kind(array)} {zlib.crc32(array.tobytes()):08x}"
    return seals


def _like(leaf: Any) -> Any:
    """What Orbax restores a leaf to: where it is, or on the host, to be checked there
    before it is shared out."""
    if is_shared(leaf):
        return np.empty(leaf.shape, leaf.dtype)
    is_host = isinstance(leaf, np.ndarray)
    return leaf if is_host else ocp.utils.to_shape_dtype_struct(leaf)


def named(items: Any) -> list[tuple[str, Any]]:
    """Every array with its path, which is the same where a class is not given."""
    return [(_path(keys), leaf) for keys, leaf in jax.tree.leaves_with_path(items)]


def mapped(function: Callable, *items: Any) -> Any:
    """Items of function(path, array of each of the items)."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, *leaves: function(_path(keys), *leaves), *items
    )


def _path(keys: Any) -> str:
    # A named tuple comes back as a dictionary where its class is not given.
    return jax.tree_util.keystr(keys, simple=True, separator=".")


def record_checksum(record: dict[str, Any]) -> str:
    """CRC-32 of what is saved beside the arrays."""
    return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


def first_line(error: BaseException) -> str:
    """What an error says, in short."""
    while cause := error.__cause__ or error.__context__:  # said best where it began
        error = cause
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
