"""Where a run continues: its newest sound checkpoint, damaged ones being set aside."""

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from hfdist.checkpoint import Checkpoints, Unsound
from hfdist.errors import UsageError
from hfdist.processes import from_first, is_first, this_process, wait_for_all
from hfdist.pytree import PyTree


class Position(NamedTuple):
    """What a run needs beside its arrays to go on after a step."""

    step: int = 0
    metrics_bytes: int = 0  # length of metrics.jsonl at that step


def restore_newest(checkpoints: Checkpoints, carry: Any) -> tuple[Position, Any]:
    """(position, (params, optimizer)) of the newest sound checkpoint.

    The carry given has their structure, and is the start of a run that has none.
    """
    like = {"params": carry[0], "optimizer": carry[1]}
    found = _newest_sound(checkpoints, checkpoints.steps(), **like)
    if found is None:
        return Position(), carry
    items, record = found
    return Position(**record), (items["params"], items["optimizer"])


def restore_params(
    run_dir: Path, params: PyTree, step: int | None = None
) -> tuple[int, PyTree]:
    """(step, params) of a run's checkpoint, the newest sound one by default."""
    with closing(Checkpoints(run_dir / "checkpoints", read_only=True)) as checkpoints:
        steps = checkpoints.steps()
        wanted = steps if step is None else [step]
        if not set(wanted) <= set(steps):
            raise UsageError(
                f"{checkpoints.folder} has no checkpoint of step {step}; its steps are "
                f"{steps}"
            )
        found = _newest_sound(checkpoints, wanted, params=params)
        if found is None:
            raise UsageError(f"{checkpoints.folder} has no sound checkpoint to use")
        items, record = found
        return record["step"], items["params"]


def _newest_sound(checkpoints: Checkpoints, steps: Sequence[int], **like: Any):
    """(items, record) of the last of the steps that is sound, if there is one.

    All processes take the same: the first one's word counts. Unsound checkpoints are
    named, and moved away where they may be.
    """
    complaints, found, used = [], None, "none"
    for step in reversed(steps):
        try:
            found, error = checkpoints.restore(step, **like), None
        except Unsound as unsound:
            found, error = None, str(unsound)
        verdict = from_first(error)
        if verdict is None and error:
            raise UsageError(
                f"{this_process()} reads checkpoint {step} otherwise than process 0 "
                f"({error}): check its disk"
            )
        if verdict is None:
            used = f"step {step}"
            break
        complaints.append(f"checkpoint {step} is unsound: {verdict}")
        if is_first() and not checkpoints.read_only:
            complaints[-1] += f" (now {checkpoints.set_aside(step)})"
        wait_for_all()
        checkpoints.reload()
    for complaint in complaints if is_first() else []:
        print(f"hfdist: {complaint}: using {used} instead", file=sys.stderr)
    return found


def saved(run_dir: Path) -> Checkpoints:
    """A run's checkpoints, to read. Raises UsageError if it has no folder of them."""
    folder = run_dir / "checkpoints"
    if not folder.is_dir():
        raise UsageError(f"{run_dir} has no folder of checkpoints")
    return Checkpoints(folder, read_only=True)


def survey(run_dir: Path) -> list[dict[str, Any]]:
    """A row for each checkpoint of a run, every checksum compared."""
    rows = []
    with closing(saved(run_dir)) as checkpoints:
        for step in checkpoints.steps():
            row = {"step": step, "bytes on disk": checkpoints.size(step)}
            try:
                row |= {"bytes of state": checkpoints.verify(step), "found": "sound"}
            except Unsound as error:
                row |= {"bytes of state": "", "found": f"unsound: {error}"}
            rows.append(row)
    return rows
