"""A run's folder: config.json, metrics.jsonl and checkpoints/."""

import itertools
import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.tree_util import keystr

from hfdist.cluster.processes import from_first, is_first, this_process, wait_for_all
from hfdist.errors import UsageError
from hfdist.runs.config import Config, from_json, to_json
from hfdist.runs.files import leftovers, read_text, replace_text
from hfdist.runs.run_lock import NAME as LOCK
from hfdist.runs.run_lock import locked

NAME = "config.json"

# Settings that a continued run may change: they do not alter the steps already made.
MAY_CHANGE = {
    "epochs",
    "max_steps",
    "max_rejected",
    "devices",
    "micro_batch_size",
    "sharding",
    "run_dir",
    "checkpoint_minutes",
    "checkpoint_steps",
    "keep",
    "keep_every",
    "evaluation_batch_size",
    "compilation_cache",
    "tensorboard",
    "wandb",
    "profile",
}
PACKAGES = ("hfdist", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")


class Run(NamedTuple):
    """A run's folder, held; what tells its checkpoints from another run's; and
    whether it has saved one."""

    folder: Path
    identity: str
    saved: bool


@contextmanager
def open_run(config: Config, name: str) -> Iterator[Run]:
    """Hold the run's folder for the time of a block, its config.json up to date.

    It is made or found again; without a run_dir it is a new one, runs/<name>-<time>.
    Of several processes the first one holds it and writes, and the others wait for it.
    Raises UsageError if it cannot be written, is held by another run, holds something
    else, or holds a run of another config.
    """
    with ExitStack() as stack:
        answer = "", "", False
        if is_first():
            folder = config.run_dir or Path("runs")
            try:
                folder = config.run_dir or _new_folder(folder, name)
                answer = str(folder), *_open(replace(config, run_dir=folder), stack)
            except OSError as error:
                raise _not_writable(folder, error) from None
        folder, identity, saved = from_first(answer)
        yield Run(Path(folder), identity, saved)


def _new_folder(parent: Path, name: str) -> Path:
    """A folder that no other run has, though it started in the same second."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for count in itertools.count(1):
        folder = parent / (stem if count == 1 else f"{stem}-{count}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not parent.is_dir():
                raise
    raise AssertionError("unreachable")


def _open(config: Config, stack: ExitStack) -> tuple[str, bool]:
    """(identity, whether it has saved) of the run, locked until the stack is closed."""
    assert config.run_dir is not None
    run_dir, file = config.run_dir, config.run_dir / NAME
    run_dir.mkdir(parents=True, exist_ok=True)
    if set(run_dir.iterdir()) - {run_dir / LOCK, *leftovers(file)}:
        read_record(run_dir)  # or it is not a run's, and gets no lock
    stack.enter_context(locked(run_dir))
    for left in leftovers(file):  # by a kill while it was written
        left.unlink()
    old = {}
    if file.exists():
        old = read_record(run_dir)
        _check_same(_config_of(run_dir, old), config)
    identity, saved = old.get("run") or uuid.uuid4().hex, bool(old.get("saved"))
    _write_record(run_dir, {**_record(config), "run": identity, "saved": saved})
    return identity, saved


def note_saved(run_dir: Path) -> None:
    """Note that a checkpoint is whole: from now on the run has something to lose."""
    record = read_record(run_dir)
    if not record.get("saved"):
        _write_record(run_dir, record | {"saved": True})


def _write_record(run_dir: Path, record: dict[str, Any]) -> None:
    try:
        replace_text(run_dir / NAME, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise _not_writable(run_dir, error) from None


def _not_writable(run_dir: Path, error: OSError) -> UsageError:
    where = Path(error.filename or run_dir).name
    return UsageError(
        f"run directory {run_dir} cannot be written ({where}: {error.strerror}): give "
        f"--run-dir a folder that can"
    )


def agree(config: Config) -> None:
    """Raise UsageError unless all processes have one config and the same packages.

    A process that differs from the first one ends all of them.
    """
    versions = {f"version of {name}": version(name) for name in PACKAGES}
    own = _flat(to_json(config)) | versions
    differing = [
        f"{name} is {there} there, {here} here"
        for name, here, there in _differences(from_first(own), own)
    ]
    if differing:
        raise UsageError(
            f"{this_process()} was not started like process 0: {'; '.join(differing)}"
        )
    wait_for_all()


def read_config(run_dir: Path) -> Config:
    """The config that a run directory was made with."""
    return _config_of(run_dir, read_record(run_dir))


def _config_of(run_dir: Path, record: dict[str, Any]) -> Config:
    try:
        return from_json(record.get("config"))
    except UsageError as error:
        raise UsageError(f"{run_dir}: {error}") from None


def run_identity(run_dir: Path) -> str:
    """What tells this run's checkpoints from another's."""
    return str(read_record(run_dir).get("run"))


def read_record(run_dir: Path) -> dict[str, Any]:
    """What config.json holds. Raises UsageError if there is none, or it is damaged."""
    try:
        record = json.loads(read_text(run_dir / NAME))
        if not isinstance(record, dict):
            raise ValueError(f"it holds a {type(record).__name__}, not an object")
        if not isinstance(record.get("run", ""), str):
            raise ValueError("its run is no text")
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"{run_dir} is not a run directory: its config.json cannot be read ({why})"
            f": give the folder that `hfdist train` made, or put config.json back"
        ) from None
    return record


def _check_same(old: Config, new: Config) -> None:
    before_and_now = (_flat(to_json(config, _resolved)) for config in (old, new))
    differing = [
        f"{name} was {before}, now {now}"
        for name, before, now in _differences(*before_and_now)
        if name not in MAY_CHANGE
    ]
    if differing:
        raise UsageError(
            f"{new.run_dir} holds a run of another config ({'; '.join(differing)}): "
            f"give these their old values to continue it, or another --run-dir"
        )


def _differences(old: dict, new: dict) -> list[tuple[str, Any, Any]]:
    """(name, old value, new value) wherever the two are not the same."""
    pairs = [(name, old.get(name), new.get(name)) for name in sorted(old | new)]
    return [(name, before, now) for name, before, now in pairs if before != now]


def _resolved(path: Path) -> str:
    """Where a path leads: another name for it is no other config."""
    return str(path.expanduser().resolve())


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """The values by their dotted names."""
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda x: not isinstance(x, dict))
    return {keystr(path, simple=True, separator="."): value for path, value in leaves}


def _record(config: Config) -> dict[str, Any]:
    device = jax.local_devices()[0]
    return {
        "config": to_json(config),
        "versions": {name: version(name) for name in PACKAGES},
        "device": {"platform": device.platform, "kind": device.device_kind},
        "processes": jax.process_count(),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit of hfdist's own checkout, with '-dirty' for local changes."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True
        )
    except OSError:
        return None
    return done.stdout.strip() or None
