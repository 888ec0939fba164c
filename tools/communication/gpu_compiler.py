"""A step as XLA compiles it for NVIDIA GPUs, on a machine that has none.

`compile_step` starts this file in a process of its own, for XLA must be told before it
starts. It needs the packages of requirements-cuda13.lock, but no driver. Autotuning
needs a GPU and is off: the choice of kernels for matrix products is not that of a real
run, but the collectives, their places, and the memory of buffers are.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from communication.arithmetic import operations
from communication.cards import CARDS
from communication.compiled import abstract_update
from hfdist.errors import UsageError
from hfdist.parallel import AXIS
from hfdist.pytree import parameter_count
from hfdist.runs.config import Config, load
from hfdist.tasks.examples import Examples, readable

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-gpu"
SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",
    "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tools"))),
}
# Batches to compile for, in parts of the config's: a line through both has what is of
# the examples, and what is not.
BATCHES = 1, 2


class Compiled(NamedTuple):
    """A program for one GPU of many."""

    hlo: str
    memory: dict[str, int]  # bytes by what they are for
    operations: list[tuple[str, str, float]]  # place, number format, how many


class Step(NamedTuple):
    """A config's step, compiled for BATCHES."""

    parameters: int
    jax: str  # version
    programs: list[Compiled]


def interpreter() -> Path:
    """A Python that can compile for GPUs. Raises UsageError if there is none."""
    if find_spec("jax_cuda13_plugin"):
        return Path(sys.executable)
    other = ENVIRONMENT / "bin" / "python"
    if not other.exists():
        raise UsageError(
            f"--gpus needs XLA's compiler for NVIDIA GPUs (5 GB, no GPU): run `make "
            f"setup-gpu-compile`, which puts it into {ENVIRONMENT.name}"
        )
    return other


def compile_step(config: Path, overrides: list[str], gpus: str, card: str) -> Step:
    """The config's step for HOSTSxGPUS of a card.

    Raises UsageError if they cannot be compiled for.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "step.json"
        command = [interpreter(), "-m", __name__, config, gpus, card, file, *overrides]
        done = subprocess.run(
            list(map(str, command)),
            env={**os.environ, **SETTINGS},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it said nothing"]
            raise UsageError(
                f"XLA cannot compile this step for {gpus} {card} here (exit code "
                f"{done.returncode}): {lines[-1][:300]}"
            )
        parameters, version, programs = json.loads(file.read_text())
    return Step(parameters, version, [Compiled(*program) for program in programs])


def mesh_of(gpus: str, card: str) -> Mesh:
    """A mesh of GPUs that can be compiled for alone."""
    topology = topologies.get_topology_desc(
        topology_name="",
        platform="cuda",
        topology=f"1x{gpus}",
        target_config=CARDS[card].target,
    )
    return Mesh(np.array(topology.devices), (AXIS,), axis_types=(AxisType.Auto,))


def compiled(config: Config, examples: Examples, mesh: Mesh, size: int) -> Compiled:
    """The program of one update, as a run has it: its params and state are donated."""
    step, arguments = abstract_update(config, examples, mesh, size)
    traced = jax.jit(step, donate_argnums=0).trace(*arguments)
    program: Any = traced.lower().compile()
    stats = program.memory_analysis()
    memory = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
    }
    counted = [(*key, float(n)) for key, n in operations(traced.jaxpr).items()]
    return Compiled(program.as_text(), memory, counted)


def main() -> None:
    """Compile, and write a Step as JSON."""
    path, gpus, card, file, *overrides = sys.argv[1:]
    config = load(Path(path), overrides)
    with jax.enable_x64(config.dtype == "float64"):
        examples = readable(config.data.examples("train"))
        mesh = mesh_of(gpus, card)
        sizes = [times * config.batch_size for times in BATCHES]
        programs = [compiled(config, examples, mesh, size) for size in sizes]
        count = parameter_count(config.build_problem()[1])
    Path(file).write_text(json.dumps(Step(count, jax.__version__, programs)))


if __name__ == "__main__":
    main()
