"""Where a run continues: its newest sound checkpoint, damaged ones being set aside."""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hfdist.cluster.processes import (
    from_all,
    from_first,
    is_first,
    this_process,
    wait_for_all,
)
from hfdist.errors import UsageError
from hfdist.parallel import Sharding
from hfdist.pytree import PyTree
from hfdist.runs.checkpoint import Checkpoints, Unreadable, Unsound
from hfdist.runs.run_directory import run_identity

PATIENCE = (1.0, 2.0, 4.0, 8.0)  # seconds between attempts at a disk out of reach


class Position(NamedTuple):
    """What a run needs beside its arrays to go on after a step."""

    step: int = 0
    metrics_bytes: int = 0  # length of metrics.jsonl at that step
    sharding: Sharding = "replicated"  # how its vectors are held


def restore_newest(
    checkpoints: Checkpoints, like: Callable[[Sharding], Any], saved: bool
) -> tuple[Position, Any]:
    """(position, (params, optimizer)) of the newest sound checkpoint.

    They are like those that `like` gives for the sharding with which they were saved;
    None stands for them in a run that has not saved yet. Unsound checkpoints are moved
    away for a sound one. Raises UsageError, and moves nothing, if none is sound, or
    none is left of a run that has saved.
    """

    def read(step: int) -> Any:
        sharding = checkpoints.record(step).get("sharding", "replicated")
        params, optimizer = like(sharding)
        return checkpoints.restore(step, params=params, optimizer=optimizer)

    found, unsound = _newest_sound(checkpoints, checkpoints.steps(), read)
    if found is None:
        if saved or unsound:
            raise UsageError(_nothing_left(checkpoints, unsound))
        return Position(), None
    items, record = found
    position = Position(**record)
    if is_first():
        for step in unsound:
            unsound[step] += f" (now {checkpoints.set_aside(step)})"
    _complain(unsound, position.step)
    wait_for_all()
    return position, (items["params"], items["optimizer"])


def restore_params(
    run_dir: Path, params: PyTree, step: int | None = None
) -> tuple[int, PyTree]:
    """(step, params) of a run's checkpoint, the newest sound one by default."""
    checkpoints = saved_in(run_dir)
    steps = checkpoints.steps()
    wanted = steps if step is None else [step]
    if not set(wanted) <= set(steps):
        raise UsageError(
            f"{checkpoints.folder} has no checkpoint of step {step}; its steps are "
            f"{steps}"
        )
    read = partial(checkpoints.restore, params=params)
    found, unsound = _newest_sound(checkpoints, wanted, read)
    if found is None:
        raise UsageError(_nothing_left(checkpoints, unsound))
    items, record = found
    _complain(unsound, record["step"])
    return record["step"], items["params"]


def _complain(unsound: dict[int, str], used: int) -> None:
    for step, why in unsound.items() if is_first() else []:
        print(
            f"hfdist: checkpoint {step} is unsound: {why}: using step {used} instead",
            file=sys.stderr,
        )


def saved_in(run_dir: Path) -> Checkpoints:
    """A run's checkpoints, to read. Raises UsageError if it has no folder of them."""
    identity = run_identity(run_dir)
    folder = run_dir / "checkpoints"
    if not folder.is_dir():
        raise UsageError(f"{run_dir} has no folder of checkpoints: let the run save")
    return Checkpoints(folder, identity)


def survey(run_dir: Path) -> list[dict[str, Any]]:
    """A row for each checkpoint of a run, every checksum compared."""
    checkpoints, rows = saved_in(run_dir), []
    for step in checkpoints.steps():
        row = {"step": step, "bytes on disk": checkpoints.size(step)}
        try:
            row |= {"bytes of state": checkpoints.verify(step), "found": "sound"}
        except Unsound as error:
            row |= {"bytes of state": "", "found": f"unsound: {error}"}
        except Unreadable as error:
            row |= {"bytes of state": "", "found": f"cannot be read now: {error}"}
        except UsageError as error:
            row |= {"bytes of state": "", "found": str(error)}
        rows.append(row)
    return rows


def _nothing_left(checkpoints: Checkpoints, unsound: dict[int, str]) -> str:
    if not unsound:
        whole = f"{checkpoints.folder} has no checkpoint, though this run has saved"
    else:
        each = (f"checkpoint {step} is unsound: {why}" for step, why in unsound.items())
        whole = (
            f"{checkpoints.folder} has no sound checkpoint to use: {'; '.join(each)}"
        )
    return (
        f"{whole}. Nothing was moved or cut: put a sound one back, or start again in "
        f"another --run-dir"
    )


def _newest_sound(
    checkpoints: Checkpoints, steps: Sequence[int], read: Callable[[int], Any]
) -> tuple[Any, dict[int, str]]:
    """((items, record), or None, of the last sound step; why later ones are unsound).

    All processes take the same: the first one's word counts.
    """
    unsound = {}
    for step in reversed(from_first(steps)):
        found, damage, verdict = _attempt(checkpoints, step, read)
        if verdict is None and damage:
            raise UsageError(
                f"{this_process()} reads checkpoint {step} otherwise than process 0 "
                f"({damage}): check its disk"
            )
        if verdict is None:
            return found, unsound
        unsound[step] = verdict
    return None, unsound


def _attempt(
    checkpoints: Checkpoints, step: int, read: Callable[[int], Any]
) -> tuple[Any, str | None, str | None]:
    """((items, record) or None, what is unsound about it here, and in process 0).

    A disk out of reach is given time: all processes try again together. Raises
    UsageError if it stays so.
    """
    fault = None
    for pause in (*PATIENCE, None):
        found = fault = damage = None
        try:
            found = read(step)
        except Unreadable as error:
            fault = f"{this_process()}: {error}"
        except Unsound as error:
            damage = str(error)
        faults, damages = zip(*from_all([fault, damage]), strict=True)
        if not any(faults):
            return found, damage, _verdict(checkpoints, step, damages)
        fault = next(filter(None, faults))
        if pause is None:
            break
        if is_first():
            print(
                f"hfdist: checkpoint {step} cannot be read ({fault}): trying again",
                file=sys.stderr,
            )
        time.sleep(pause)
    raise UsageError(
        f"checkpoint {step} in {checkpoints.folder} cannot be read ({fault}): nothing "
        f"was moved or cut; run the same command again when the disk is back"
    )


def _verdict(
    checkpoints: Checkpoints, step: int, damages: Sequence[str | None]
) -> str | None:
    """What is unsound about it: process 0's word, the parts of others looked at too."""
    word = damages[0]
    if word or not any(damages):
        return word
    if is_first():
        try:
            checkpoints.verify(step)
        except Unsound as error:
            word = str(error)
        except Unreadable:
            pass  # then it is for the other process to say
    return from_first(word)
