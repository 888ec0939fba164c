"""The memory that a process may have: the machine's, or its control group's."""

import os

import pytest

from hfdist import memory

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
V1, V2 = "memory/{}/memory.limit_in_bytes", "{}/memory.max"
UNLIMITED = 9223372036854771712  # as version 1 has it


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/a/b", {V2.format("a/b"): 3000}, 3000),
        ("0::/a/b", {V2.format("a/b"): "max", V2.format("a"): 5000}, 5000),
        ("0::/a/b", {V2.format("a/b"): 7000, V2.format("a"): 5000}, 5000),
        ("0::/a/b", {V2.format("."): 3000}, 3000),  # seen from a container
        ("0::/a/b", {V2.format("c"): 3000}, MACHINE),
        ("0::/", {}, MACHINE),
        ("4:cpu,memory:/a\n0::/", {V1.format("a"): 4000}, 4000),
        ("4:memory:/a\n0::/", {V1.format("a"): UNLIMITED}, MACHINE),
        ("4:memory:/a", {V1.format("a"): UNLIMITED, V1.format("."): 4000}, 4000),
        ("3:cpu:/a", {V1.format("a"): 3000}, MACHINE),
        (None, {}, MACHINE),  # no Linux
    ],
)
def test_the_least_limit_counts(groups, limits, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "MOUNT", tmp_path / "mount")
    if groups is not None:
        (tmp_path / "cgroup").write_text(f"{groups}\n")
    for name, limit in limits.items():
        path = tmp_path / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")
    assert memory.host_memory() == expected
