"""One update of the autoencoder, alone in a process: python -m gpu_check.peak CACHE.

Prints a JSON object of bytes: the compiled program's arguments, outputs and
temporaries; in use on the device before the update; at the peak since the start of the
process, before the update and after it. null where the device counts none.
"""

import json
import sys

import jax

from communication.compiled import one_update
from gpu_check.part import ROOT
from hfdist.runs.config import load
from hfdist.tasks.examples import readable


def main(cache: str) -> None:
    """Compile, or find in the cache, and run."""
    found = None
    if "peak_bytes_in_use" in counted():
        jax.config.update("jax_compilation_cache_dir", cache)
        found = update()
    print(json.dumps(found))


def update() -> dict[str, int]:
    """The figures."""
    config = load(ROOT / "configs" / "mnist" / "autoencoder.py")
    step, start = one_update(config, readable(config.data.examples("train")))
    program = jax.jit(step).lower(*start).compile()
    planned = program.memory_analysis()
    assert planned is not None
    jax.block_until_ready(start)
    before = counted()
    jax.block_until_ready(program(*start))
    return {
        "arguments": planned.argument_size_in_bytes,
        "outputs": planned.output_size_in_bytes,
        "temporaries": planned.temp_size_in_bytes,
        "before": before["bytes_in_use"],
        "peak before": before["peak_bytes_in_use"],
        "peak": counted()["peak_bytes_in_use"],
    }


def counted() -> dict[str, int]:
    """What the first device says of its memory."""
    return jax.local_devices()[0].memory_stats() or {}


if __name__ == "__main__":
    main(sys.argv[1])
