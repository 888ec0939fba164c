"""What hfdist needs and this Python lacks, all of it at once."""

import tomllib
from importlib.metadata import PackageNotFoundError, distribution

from gpu_check.part import ROOT


def lacking() -> list[str]:
    """Names of packages that are not installed, hfdist itself among them.

    Those that only a lacking one would need are not known.
    """
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        return ["packaging"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = list(map(Requirement, [project["name"], *project["dependencies"]]))
    found, seen = set(), set()
    while waiting:
        needed = waiting.pop()
        if str(needed) in seen:
            continue
        seen.add(str(needed))
        try:
            requirements = distribution(needed.name).requires or []
        except PackageNotFoundError:
            found.add(needed.name)
            continue
        for one in map(Requirement, requirements):
            extras = needed.extras or {""}
            if not one.marker or any(one.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(one)
    return sorted(found)
