"""The import arrows of the house, and what names a mesh axis."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hfdist"

WINGS = ("cluster", "runs")  # the rest is mathematics, which knows neither
# Each part may import those before it. Parts in one row do not import each other.
ROWS = [
    ["errors"],
    ["batches", "checks", "eigenpairs", "memory", "pytree"],
    ["sharing"],
    [
        "choices",
        "layers",
        "outcome",
        "parallel",
        "preconditioner",
        "problem",
        "solvers",
    ],
    ["jacobian", "losses", "sums", "damping", "first_product", "models"],
    ["linearised", "roots", "where_used"],
    ["curvatures", "micro_batches", "outputs", "preconditioners"],
    ["probes", "quadratics"],
    ["backtracking", "hindsight", "samples", "scales", "spring", "step"],
    ["step_rules"],
    ["coordinates"],
    ["methods", "tasks"],
    ["fitting"],
    ["matrix"],
    ["spectrum"],
    ["cluster.place"],
    ["cluster.processes"],
    [
        "runs.files",
        "runs.output",
        "runs.parts",
        "runs.spans",
        "runs.progress",
        "runs.interrupt",
    ],
    ["runs.config", "runs.metrics", "runs.checkpoint", "runs.run_lock"],
    ["runs.run_directory", "runs.saver", "runs.sinks"],
    ["runs.resume", "runs.shards"],
    ["runs.evaluate", "runs.plan"],
    ["runs.recorder"],
    ["runs.train"],
    ["__main__"],
]
RANK = {part: rank for rank, row in enumerate(ROWS) for part in row}
# Narrower than the rows: what these may know at all.
ONLY = {
    "solvers": {"checks", "errors", "memory", "pytree"},
    "choices": {"checks"},
    "outcome": set(),
    "damping": {"choices", "outcome"},
    "sums": {"problem", "pytree", "solvers"},
    "roots": {"errors", "losses", "problem", "pytree"},
    "layers": {"pytree"},
    "linearised": {"errors", "problem", "pytree", "sums"},
    "curvatures": {
        *("jacobian", "layers", "linearised", "memory", "problem", "pytree"),
        *("solvers", "sums"),
    },
    "preconditioner": {"checks", "pytree", "sharing"},
    "preconditioners": {"preconditioner", "pytree"},
    "micro_batches": {"batches", "errors", "parallel", "problem", "pytree", "sums"},
    "probes": {
        *("micro_batches", "parallel", "problem", "pytree", "roots", "sums"),
    },
    "outputs": {
        *("batches", "jacobian", "linearised", "parallel", "problem", "pytree"),
        *("roots", "solvers"),
    },
    "backtracking": {"quadratics", "solvers"},
    "samples": {
        *("parallel", "preconditioner", "probes", "problem", "pytree", "quadratics"),
    },
    "scales": {"pytree"},
    "spring": {"pytree", "solvers"},
    "step": {"quadratics", "solvers"},
    "hindsight": {"pytree", "quadratics"},
    "step_rules": {"choices", "pytree", "step"},
    "eigenpairs": {"errors"},
    "spectrum": {"eigenpairs", "errors", "matrix", "memory", "pytree"},
    "sharing": {"pytree"},
    "where_used": {"problem", "pytree"},
    "parallel": {"batches", "errors", "pytree", "sharing"},
    "problem": {"checks", "errors", "pytree"},
    "first_product": {"errors", "parallel", "problem", "pytree"},
    "coordinates": {"first_product", "parallel", "problem", "pytree", "quadratics"},
    "fitting": {
        *("checks", "damping", "errors", "methods", "outcome", "parallel", "pytree"),
    },
    "cluster.place": {"errors"},
    "cluster.processes": {"cluster.place", "errors"},
    "runs.files": set(),
    "runs.output": set(),
    "runs.spans": set(),
    "runs.progress": set(),
    "runs.interrupt": {"cluster.processes"},
    "tasks": {
        *("checks", "errors", "jacobian", "losses", "memory", "models"),
        *("problem", "pytree"),
    },
    "runs.metrics": {"errors", "runs.files"},
    "runs.parts": set(),
    "runs.checkpoint": {"checks", "errors", "pytree", "runs.parts"},
    "runs.run_lock": {"cluster.processes", "errors", "runs.files"},
    "runs.sinks": {"errors", "runs.config", "runs.files", "runs.metrics"},
    "runs.resume": {
        *("cluster.processes", "errors", "parallel", "pytree"),
        *("runs.checkpoint", "runs.run_directory"),
    },
}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(names):
    """The part of the house that a dotted name below hfdist leads to."""
    return ".".join(names[: 2 if names[0] in WINGS else 1])


def part_in(path):
    return part_of(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path):
    """The dotted names that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    mine = part_in(path)
    for name in imports(path):
        package, _, rest = name.partition(".")
        assert package not in {"configs", "launch", "tools", "tests"}
        theirs = part_of(rest.split("."))
        if package != "hfdist" or theirs == mine or mine == "__init__":
            continue
        assert RANK[theirs] < RANK[mine], f"{mine} imports {theirs}"
        assert theirs in ONLY.get(mine, RANK), f"{mine} imports {theirs}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_parallel_names_a_mesh_axis(path):
    if part_in(path) in {"parallel", "sharing"}:
        return
    words = ("psum", "pcast", "shard_map", "PartitionSpec", "all_gather", "axis_name")
    source = path.read_text()
    code = ast.unparse(ast.parse(source))  # without comments
    assert not [word for word in words if f".{word}" in code]
    assert not any(name.startswith("jax.sharding.Part") for name in imports(path))


def test_every_part_has_its_place():
    inits = {"__init__", *(f"{wing}.__init__" for wing in WINGS)}
    assert {part_in(path) for path in FILES} - inits == set(RANK)
