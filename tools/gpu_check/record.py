"""gpu.json: what the parts gave, written anew after each of them."""

import json
from pathlib import Path
from typing import Any

from gpu_check.budget import SECONDS
from gpu_check.page import facts, page
from gpu_check.process import PASSED, SKIPPED
from hfdist.errors import UsageError
from hfdist.runs.files import replace_text
from toolkit.command_line import to_json

# By which a machine is known again; parts of two have no place in one report.
IDENTITY = ("platform", "device", "devices", "jax", "jaxlib")
JSON, PAGE, LOG = "gpu.json", "gpu.md", "gpu.log"


def read(out: Path, quick: bool) -> dict[str, Any]:
    """What the folder holds, or an empty record.

    Raises UsageError for a file that is no record, or is of a check that was quick
    where this one is not, or the other way round.
    """
    path = out / JSON
    if not path.exists():
        return {"quick": quick, "parts": {}}
    try:
        record = json.loads(path.read_text())
        before, parts = record["quick"], record["parts"]
        assert all(one["verdict"] for one in parts.values())
    except (OSError, ValueError, TypeError, LookupError, AssertionError):
        raise UsageError(
            f"{path} is no record of this tool: put it back, or give another --out"
        ) from None
    if before != quick:
        raise UsageError(
            f"{path} is of a check {'with' if before else 'without'} --quick: give the "
            f"same, or another --out"
        )
    return record


def write(out: Path, record: dict[str, Any]) -> None:
    """Write the record and its page; a reader finds each whole."""
    try:
        replace_text(out / JSON, to_json(record, indent=1) + "\n")
        replace_text(out / PAGE, page(record))
    except OSError as error:
        raise UsageError(
            f"{out} cannot be written ({error.strerror}): give another --out"
        ) from None


def due(record: dict[str, Any], again: list[str]) -> list[str]:
    """The parts to run, the environment first: by it the machine is known again."""
    parts = record["parts"]
    done = {name for name, one in parts.items() if settled(one)} - set(again)
    waiting = [name for name in SECONDS if name not in done]
    if waiting and "environment" not in waiting:
        waiting.insert(0, "environment")
    return waiting


def settled(outcome: dict[str, Any]) -> bool:
    """Whether a part ran and passed, or is not for this machine."""
    return outcome["verdict"] in (PASSED, SKIPPED)


def check_same(out: Path, before: dict[str, Any] | None, now: dict[str, Any]) -> None:
    """Raise UsageError where the environment was that of another machine."""
    old, new = facts(before), facts(now)
    differing = [
        f"{name} {old[name]} there, {new[name]} here"
        for name in IDENTITY
        if name in old and name in new and old[name] != new[name]
    ]
    if differing:
        raise UsageError(
            f"{out / JSON} is of another machine ({'; '.join(differing)}): give "
            f"another --out"
        )
