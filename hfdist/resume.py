"""Where a run continues: its newest sound checkpoint, damaged ones being set aside."""

import sys
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax

from hfdist.checkpoint import Checkpoints, Unsound
from hfdist.errors import UsageError
from hfdist.processes import from_first, is_first
from hfdist.pytree import PyTree


class Position(NamedTuple):
    """What a run needs beside its arrays to go on after a step."""

    step: int = 0
    metrics_bytes: int = 0  # length of metrics.jsonl at that step


def restore_newest(checkpoints: Checkpoints, carry: Any) -> tuple[Position, Any]:
    """(position, (params, optimizer)) of the newest sound checkpoint.

    The carry given has their structure, and is the start of a run that has none.
    """
    complaints = []
    for step in reversed(checkpoints.steps()):
        try:
            items, record = checkpoints.restore(
                step, params=carry[0], optimizer=carry[1]
            )
            error = None
        except Unsound as unsound:
            items, record, error = {}, {}, str(unsound)
        # All continue from the same step: the first process's word counts.
        verdict = from_first(error)
        if verdict is None and error:
            raise UsageError(
                f"process {jax.process_index()} reads checkpoint {step} otherwise than "
                f"process 0 ({error}): check its disk"
            )
        if verdict is None:
            _report(complaints, f"step {step}")
            position = Position(step, record["metrics_bytes"])
            return position, (items["params"], items["optimizer"])
        if is_first():
            where = checkpoints.set_aside(step)
            complaints.append(f"checkpoint {step} is unsound: {verdict} (now {where})")
        from_first("moved")
        checkpoints.reload()
    _report(complaints, "the start")
    return Position(), carry


def restore_params(run_dir: Path, params: PyTree, step: int | None = None):
    """(step, params) of a run's checkpoint, the newest sound one by default."""
    with closing(Checkpoints(run_dir / "checkpoints", read_only=True)) as checkpoints:
        present = checkpoints.steps()
        if step is not None and step not in present:
            raise UsageError(
                f"{checkpoints.folder} has no checkpoint of step {step}; its steps are "
                f"{present}"
            )
        complaints = []
        for candidate in reversed(present) if step is None else [step]:
            try:
                items, _ = checkpoints.restore(candidate, params=params)
                _report(complaints, f"step {candidate}")
                return candidate, items["params"]
            except Unsound as error:
                complaints.append(f"checkpoint {candidate} is unsound: {error}")
        found = "; ".join(complaints) or "there is none"
        raise UsageError(f"{checkpoints.folder} has no sound checkpoint: {found}")


def _report(complaints: list[str], used: str) -> None:
    if is_first():
        for complaint in complaints:
            print(f"hfdist: {complaint}: using {used} instead", file=sys.stderr)


def survey(run_dir: Path) -> list[dict[str, Any]]:
    """A row for each checkpoint of a run, every checksum compared."""
    folder = run_dir / "checkpoints"
    if not folder.is_dir():
        raise UsageError(f"{run_dir} has no folder of checkpoints")
    rows = []
    with closing(Checkpoints(folder, read_only=True)) as checkpoints:
        for step in checkpoints.steps():
            row = {"step": step, "bytes on disk": checkpoints.size(step)}
            try:
                row |= {"bytes of state": checkpoints.verify(step), "found": "sound"}
            except Unsound as error:
                row |= {"bytes of state": "", "found": f"unsound: {error}"}
            rows.append(row)
    return rows
