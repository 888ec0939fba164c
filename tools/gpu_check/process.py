"""A part run in a process of its own, ended at its limit, and what came of it."""

import json
import os
import signal
import site
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpu_check.part import NAME, ROOT

PASSED, FAILED, SKIPPED, NOT_RUN = "passed", "failed", "skipped", "not run"
LEAVES = 10.0  # seconds a killed process is waited for: a driver may hold it for ever


def command(name: str, folder: Path, deadline: float, quick: bool) -> list[str]:
    """What runs a part."""
    arguments = [name, str(folder), str(deadline), *(["quick"] if quick else ())]
    return [sys.executable, "-m", "gpu_check", *arguments]


def run(
    name: str, seconds: float, folder: Path, log: Path, quick: bool
) -> dict[str, Any]:
    """A part's verdict, why, seconds, rows and notes; its output is added to the log.

    The part has a process group of its own, none of which is left behind.
    """
    began = time.monotonic()
    with open(log, "ab") as output:
        output.write(f"\n--- {name}\n".encode())
        output.flush()
        start = output.tell()
        process = subprocess.Popen(
            command(name, folder, began + seconds, quick),
            cwd=folder,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        try:
            end = _awaited(process, seconds)
        finally:
            _kill(process)
    said = _said(folder / NAME)
    rows, notes = ([x[kind] for x in said if kind in x] for kind in ("row", "note"))
    verdict, why = _verdict(said, end, _last_line(log, start))
    return {
        "verdict": verdict,
        "why": why,
        "seconds": round(time.monotonic() - began, 1),
        "rows": rows,
        "notes": notes,
    }


def not_run() -> dict[str, Any]:
    """The outcome of a part for which no time is left."""
    return {"verdict": NOT_RUN, "why": "time", "seconds": 0.0, "rows": [], "notes": []}


def environment(folder: Path) -> dict[str, str]:
    """This one, for a process that writes in its folder and takes memory as it needs.

    What Python finds in the home directory it finds still.
    """
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [ROOT, ROOT / "tools", *(Path(p).resolve() for p in given if p)]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONUSERBASE": site.getuserbase(),
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }


def _awaited(process: subprocess.Popen, seconds: float) -> str:
    """How a process ended, in words; "" if well."""
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"stopped at its limit of {seconds:.0f} s"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"exit code {code}" if code else ""


def _kill(process: subprocess.Popen) -> None:
    """End a process and all that it started; goes on if the first does not leave."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(LEAVES)


def _said(path: Path) -> list[dict[str, Any]]:
    """What a part said; the last line may be torn."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def _last_line(log: Path, start: int) -> str:
    """The last line of a part's output."""
    text = log.read_bytes()[start:].decode(errors="replace")
    return next((line.strip() for line in reversed(text.splitlines()) if line), "")


def _verdict(said: list[dict[str, Any]], end: str, last_line: str) -> tuple[str, str]:
    """The verdict on a part, and why in one line."""
    for one in said:
        if "error" in one:
            return FAILED, one["error"]
        if "skipped" in one and not end:
            return SKIPPED, one["skipped"]
    if end:
        return FAILED, f"{end}: {last_line}"[:200] if last_line else end
    judged = [x["row"] for x in said if "ok" in x.get("row", {})]
    wrong = [str(next(iter(row.values()))) for row in judged if not row["ok"]]
    if wrong:
        return FAILED, f"{len(wrong)} of {len(judged)} checks: {', '.join(wrong)}"[:200]
    return PASSED, ""
