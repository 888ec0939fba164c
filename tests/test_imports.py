"""The import arrows of the house, and what only parallel.py may name."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hfdist"

# Each part may import those before it. Parts in one row do not import each other.
ROWS = [
    ["errors"],
    ["batches", "checks", "files", "memory", "output", "place", "pytree", "spans"],
    ["parallel", "problem", "processes", "damping"],
    ["losses", "curvature", "first_product", "solvers", "data", "models"],
    ["coordinates"],
    ["methods"],
    ["config", "metrics", "checkpoint", "progress", "interrupt", "run_lock"],
    ["run_directory", "saver", "sinks"],
    ["resume"],
    ["evaluate"],
    ["recorder"],
    ["train"],
    ["__main__"],
]
RANK = {part: rank for rank, row in enumerate(ROWS) for part in row}
# Narrower than the rows: what these may know at all.
ONLY = {
    "solvers": {"checks", "errors", "memory", "pytree"},
    "damping": set(),
    "metrics": {"errors", "files"},
    "checkpoint": {"errors", "pytree"},
    "progress": set(),
    "interrupt": {"processes"},
    "run_lock": {"errors", "files", "processes"},
    "resume": {"checkpoint", "errors", "processes", "pytree", "run_directory"},
    "sinks": {"config", "errors", "files", "metrics"},
    "parallel": {"batches", "errors"},
    "place": {"errors"},
    "processes": {"errors", "place"},
    "problem": {"checks", "errors", "pytree"},
    "first_product": {"errors", "parallel", "problem", "pytree"},
    "coordinates": {"curvature", "first_product", "parallel", "problem", "pytree"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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
    mine = part_of(path)
    for name in imports(path):
        package, _, rest = name.partition(".")
        assert package not in {"configs", "launch", "tools", "tests"}
        theirs = rest.split(".")[0]
        if package != "hfdist" or theirs == mine or mine == "__init__":
            continue
        assert RANK[theirs] < RANK[mine], f"{mine} imports {theirs}"
        assert theirs in ONLY.get(mine, RANK), f"{mine} imports {theirs}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_parallel_names_a_mesh_axis(path):
    if part_of(path) == "parallel":
        return
    words = ("psum", "pcast", "shard_map", "PartitionSpec", "all_gather", "axis_name")
    source = path.read_text()
    code = ast.unparse(ast.parse(source))  # without comments
    assert not [word for word in words if f".{word}" in code]
    assert not any(name.startswith("jax.sharding.Part") for name in imports(path))


def test_every_part_has_its_place():
    assert {part_of(path) for path in FILES} - {"__init__"} == set(RANK)
