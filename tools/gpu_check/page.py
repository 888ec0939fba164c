"""gpu.md: the record as a page beside those of results/."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpu_check.budget import SECONDS
from hfdist.runs.progress import words
from paper_report.document import Block, Grid, Heading, Text, Warn, to_markdown

TITLES = {
    "environment": "Where it ran",
    "numerics": "Errors of float32 against float64, and the default that follows",
    "paper": "The paper's methods by `hfdist train`, for a few steps",
    "ratios": "Costs by `tools/bench.py`, beside its limits, which are a CPU's",
    "collectives": "All-reduces, beside the ring model of `tools/comms.py`",
    "memory": "An update of the autoencoder: memory as compiled, and at its peak",
    "kills": "A run killed by SIGKILL at random instants and continued",
}
QUICK = (
    "Quick run: small sizes. It shows that everything works; its figures say nothing "
    "about the device."
)
VERSIONS = ("jax", "jaxlib", "python", "driver")


def page(record: dict[str, Any]) -> str:
    """The whole record in Markdown."""
    parts = record["parts"]
    known = facts(parts.get("environment"))
    commits = ", ".join(sorted({str(one["commit"]) for one in parts.values()}))
    versions = "".join(f", {x} {known[x]}" for x in VERSIONS if x in known)
    blocks: list[Block] = [Warn(QUICK)] if record["quick"] else []
    blocks += [
        Text(f"`python tools/gpu.py` at commit {commits}{versions}."),
        Grid("Parts", ("part", "verdict", "seconds", "why"), list(summary(parts))),
    ]
    for name in _in_order(parts):
        rows, notes = parts[name]["rows"], parts[name]["notes"]
        blocks += [Heading(name)] if rows or notes else []
        blocks += [_table(TITLES[name], rows)] if rows else []
        blocks += map(Text, notes)
    count = known.get("devices", 1)
    devices = f", {count} devices" if count > 1 else ""
    machine = known.get("machine", "A machine that JAX did not name")
    return to_markdown(f"{machine}{devices}", blocks, Path())


def summary(parts: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    """A row for each part."""
    for name in _in_order(parts):
        one = parts[name]
        yield name, one["verdict"], f"{one['seconds']:.0f}", _cell(one["why"])


def facts(environment: dict[str, Any] | None) -> dict[str, Any]:
    """What the environment's rows say, by name; nothing if it was not run."""
    rows = environment["rows"] if environment else []
    return {row["what"]: row["value"] for row in rows}


def _in_order(parts: dict[str, Any]) -> list[str]:
    return [name for name in SECONDS if name in parts]


def _table(title: str, rows: list[dict[str, Any]]) -> Grid:
    """Rows that need not have the same columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [tuple(_cell(row.get(name)) for name in columns) for row in rows]
    return Grid(title, tuple(map(words, columns)), lines)


def _cell(value: Any) -> str:
    """A value in a table of Markdown."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return " ".join(str(value).replace("|", "\\|").split())
