"""The paper's five methods as a user trains them, the exact ones unreduced too."""

import math
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

from gpu_check.part import ROOT, Row, Said, Work
from hfdist.runs import metrics

CONFIGS = ROOT / "configs" / "paper"
UNREDUCED = ("--method.no-input-reduction",)
APART = 1e-2  # of the norms of the same steps, reduced and not


class Run(NamedTuple):
    """A config, for so many steps."""

    config: str
    steps: int
    settings: tuple[str, ...] = ()
    # What makes it well: its losses fall; its steps are those of the reduced run; or,
    # as undamped Newton diverges in the paper, no more than that it ends.
    sign: Literal["falls", "same", "ends"] = "falls"


RUNS = (
    Run("sgd", 938),
    Run("hf_gauss_newton", 402),
    Run("damped_newton", 60),
    Run("damped_newton", 3, UNREDUCED, "same"),
    Run("hf_newton", 402),
    Run("newton", 3, ("--max-rejected", "3"), "ends"),
    Run("newton", 2, ("--max-rejected", "2", *UNREDUCED), "ends"),
)


def measure(work: Work) -> Said:
    """A row for each run; steps of those unreduced beside those of the reduced."""
    yield (
        "Losses are means over the first and the last quarter of the steps; ms are "
        "medians, without compilation. Unreduced, an exact solve is in all 7,960 "
        "params, and the norms of its steps are apart from those of the reduced one by "
        "so much at most. Undamped Newton diverges, as in the paper: on a CPU each of "
        "its updates is rejected."
    )
    norms: dict[str, list[float]] = {}
    for i, run in enumerate(RUNS[:3] if work.quick else RUNS):
        if work.quick:
            run = run._replace(steps=min(run.steps, 67))
        lines, code = trained(run, work.folder / f"{run.config}-{i}")
        row = judged(run, lines, code)
        found = [line["step_norm"] for line in lines]
        if run.sign == "same":
            row["apart"] = apart(found, norms[run.config])
            row["ok"] = row["ok"] and row["apart"] < APART
        norms.setdefault(run.config, found)
        yield row


def trained(run: Run, folder: Path) -> tuple[list[metrics.Line], int]:
    """The lines of a run's steps, and the exit code of `hfdist train`."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "hfdist", "train", CONFIGS / f"{run.config}.py"),
            *("--max-steps", str(run.steps), "--run-dir", folder, *run.settings),
        ]
    )
    lines = metrics.read(folder) if folder.exists() else []
    return [line for line in lines if line["split"] == "train"], done.returncode


def judged(run: Run, lines: list[metrics.Line], code: int) -> Row:
    """A row: whether the run ended as it should and its loss is finite and falls."""
    reduced = "" if "--method.no-input-reduction" not in run.settings else ", unreduced"
    row: Row = {"method": f"{run.config}{reduced}", "steps": len(lines)}
    if not lines:
        return row | {"exit code": code, "ok": False}
    losses = [line["loss"] for line in lines]
    quarter = max(1, len(losses) // 4)
    first, last = statistics.mean(losses[:quarter]), statistics.mean(losses[-quarter:])
    seconds = [b["seconds"] - a["seconds"] for a, b in pairwise(lines)]
    row |= {
        "first losses": first,
        "last losses": last,
        "rejected": sum(not line["accepted"] for line in lines),
        "ms a step": 1e3 * statistics.median(seconds or [lines[0]["seconds"]]),
        "compilation s": lines[0].get("compile_seconds"),
        "exit code": code,
    }
    if run.sign == "ends":
        return row | {"ok": code in (0, 3)}
    well = last < first if run.sign == "falls" else math.isfinite(last)
    return row | {"ok": code == 0 and well}  # False for NaN too


def apart(norms: list[float], others: list[float]) -> float:
    """The largest relative difference of two runs' norms of the same steps."""
    pairs = zip(norms, others, strict=False)
    return max((abs(a - b) / abs(b) for a, b in pairs), default=float("inf"))
