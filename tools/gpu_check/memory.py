"""Whether the memory that XLA plans for an update is what the update takes."""

import json
import subprocess
import sys
from pathlib import Path

from gpu_check.part import Said, Skipped, Work

MORE = 1.1  # peak over plan


def measure(work: Work) -> Said:
    """The update of configs/mnist/autoencoder.py in a process that does nothing else.

    Two of them: the first compiles, which takes device memory of its own to try
    kernels, and the second finds the program in the cache. Raises Skipped where the
    device does not count its memory.
    """
    cache = work.folder / "cache"
    if update(cache) is None:
        raise Skipped("the device counts no peak of its memory")
    found = update(cache)
    assert found is not None
    planned = found["before"] + found["temporaries"] + found["outputs"]
    for name, nbytes in (found | {"planned": planned}).items():
        yield {"memory": name, "MB": nbytes / 1e6}
    ratio = found["peak"] / planned
    yield {"memory": "peak / planned", "ratio": ratio, "ok": ratio <= MORE}
    yield (
        "Planned is what lies on the device before the update, its arguments among "
        "it, with the program's temporaries and outputs; the peak is to be at most "
        f"{100 * (MORE - 1):.0f} % more."
    )


def update(cache: Path) -> dict[str, int] | None:
    """What peak.py prints, by a process of its own."""
    command = [sys.executable, "-m", "gpu_check.peak", str(cache)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
