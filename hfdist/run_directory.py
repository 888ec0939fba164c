"""A run's folder: config.json, metrics.jsonl and checkpoints/."""

import json
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.tree_util import keystr

from hfdist.config import Config, from_json, to_json
from hfdist.errors import UsageError
from hfdist.processes import from_first, is_first, this_process, wait_for_all

# Settings that a continued run may change: they do not alter the steps already made.
MAY_CHANGE = {
    "epochs",
    "max_steps",
    "max_rejected",
    "devices",
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


def open_run(config: Config) -> Path:
    """The run's folder, made or found again, with its config.json up to date.

    Of several processes the first one writes and the others wait for it.
    Raises UsageError if it cannot be written, holds something else, or holds a run of
    another config.
    """
    assert config.run_dir is not None
    if is_first():
        _write(config, config.run_dir)
    wait_for_all()
    return config.run_dir


def _write(config: Config, run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        part = run_dir / "config.json.part"  # left by a kill while it was written
        if set(run_dir.iterdir()) - {part}:
            _check_same(read_config(run_dir), config)
        part.write_text(json.dumps(_record(config), indent=2) + "\n")
        part.replace(run_dir / "config.json")
    except OSError as error:
        raise UsageError(
            f"run directory {run_dir} cannot be written ({error.strerror}): give "
            f"--run-dir a folder that can"
        ) from None


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
    try:
        return from_json(json.loads((run_dir / "config.json").read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{run_dir} is not a run directory: its config.json cannot be read "
            f"({error})"
        ) from None


def _check_same(old: Config, new: Config) -> None:
    differing = [
        f"{name} was {before}, now {now}"
        for name, before, now in _differences(_flat(to_json(old)), _flat(to_json(new)))
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
