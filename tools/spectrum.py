"""Eigenvalues of the curvature of a trained network, at the checkpoints of a run.

    python tools/spectrum.py RUN_DIR [--step S] [--curvature hessian|gauss_newton|both]
        [--devices N] [--examples n] [--top 10] [--exact] [--out PREFIX] [--json]
        [--config CONFIG.py]

The matrices are those of the mean loss over the first n training examples (10,000), in
float64, whatever the run's dtype. Up to 4,000 parameters whose row is not zero, and
with --exact always, all eigenvalues are computed. Otherwise those of largest modulus
are, and the distribution of the others is estimated (hfdist/spectrum): then the
negative ones are those below -1e-4 of the largest, and the zeros the zero rows alone.
On the paper's network, 7,960 parameters, a matrix takes half a minute on two idle
cores, and a minute with --exact. A run keeps checkpoints by

    hfdist train CONFIG.py --checkpoint-steps 200 --keep-every 200

λ is the damping of the run's method, where it has one (λ₀ where it adapts), and
`condition` the ratio of the extreme eigenvalues of C + λI: infinite where that is
singular, or nan where it is indefinite. PREFIX.png and PREFIX.svg show the distribution
at the last checkpoint, and over several checkpoints how it changes.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from optax import tree

import hfdist
from drawings.spectra import Found, draw
from hfdist.errors import UsageError
from hfdist.parallel import make_mesh, place_chunk, replicate
from hfdist.problem import Problem
from hfdist.pytree import parameter_count
from hfdist.quadratics import Curvature
from hfdist.runs.config import Config, load
from hfdist.runs.progress import print_table
from hfdist.runs.resume import restore_params, saved_in
from hfdist.runs.run_directory import read_config
from hfdist.spectrum import Spectrum, check_memory
from hfdist.tasks.examples import Arrays, Examples, readable
from hfdist.tasks.pipeline import Chunk, GlobalBatches
from hfdist.tasks.task import Task
from toolkit import command_line
from toolkit.recorded import CONFIG_HELP

# The largest eigenvalues of 10,000 MNIST images are within 5 % of those of all 60,000,
# at a sixth of the time.
EXAMPLES = 10_000
BATCH = 1000  # examples linearised at a time
DTYPE = "float64"
CURVATURES: dict[str, list[Curvature]] = {
    "hessian": ["hessian"],
    "gauss_newton": ["gauss_newton"],
    "both": ["hessian", "gauss_newton"],
}


def steps_of(run_dir: Path, step: int | None) -> list[int]:
    """The checkpoints to look at: one step, or all of the run's."""
    if step is not None:
        return [step]
    checkpoints = saved_in(run_dir)
    if not (steps := checkpoints.steps()):
        raise UsageError(
            f"{checkpoints.folder} holds no checkpoint: let the run save one"
        )
    return steps


def first_examples(config: Config, count: int) -> Examples:
    """The first training examples, all of them if there are fewer."""
    examples = readable(config.data.examples("train"))
    return Arrays(examples.gather(np.arange(min(count, len(examples)))))


def spectra(
    config: Config,
    examples: Examples,
    mesh: Mesh | None,
    steps: list[int],
    arguments: argparse.Namespace,
) -> list[Found]:
    """The spectra of each curvature at each step."""
    problem, like = config.build_problem()
    check_memory(parameter_count(like), arguments.exact)
    problem = on_stored(problem, config.data)
    batches = placed_batches(examples, mesh)
    found = []
    for step in steps:
        _, params = restore_params(arguments.run_dir, like, step)
        params = replicate(tree.cast(params, DTYPE), mesh)
        for curvature in CURVATURES[arguments.curvature]:
            print(f"spectrum: step {step:,}, {curvature} …", file=sys.stderr)
            matrix = hfdist.curvature(
                problem, params, batches, curvature, mesh, stacked=True
            )
            one = hfdist.spectrum.spectrum(matrix, arguments.top, arguments.exact)
            found.append(Found(step, curvature, one))
    return found


def on_stored(problem: Problem, task: Task) -> Problem:
    """The problem on batches as they are stored, prepared one at a time."""

    def predict(params, batch):
        return problem.predict(params, task.prepare(batch, DTYPE))

    def loss(outputs, batch):
        return problem.loss(outputs, task.prepare(batch, DTYPE))

    return problem._replace(predict=predict, loss=loss)


def placed_batches(examples: Examples, mesh: Mesh | None) -> Chunk:
    """All the examples on the devices, leaves (S, B, …); weight 0 pads the last batch.

    Of few examples none is a whole batch: B is then what the devices share evenly.
    """
    devices = 1 if mesh is None else mesh.size
    size = min(BATCH, len(examples))
    source = GlobalBatches(examples, size + -size % devices, seed=None)
    return place_chunk(source.chunk(0, source.per_epoch), mesh)


def to_json(found: Spectrum) -> dict[str, Any]:
    """What a program may want of a spectrum, the point masses left out."""
    residuals = found.residuals_K
    return {
        "method": found.method,
        "largest": found.largest,
        "smallest": found.smallest,
        "smallest_residual": found.smallest_residual,
        "negative_share": found.negative_share,
        "zero_below": found.zero_below,
        "zeros": found.zeros,
        "trace": found.moment(1),
        "trace_error": found.trace_error,
        "trace_of_square": found.moment(2),
        "top": found.top_K.tolist(),
        "residuals": None if residuals is None else residuals.tolist(),
    }


def report(arguments: argparse.Namespace) -> dict[str, Any]:
    """All there is to say, ready for JSON; draws the figure."""
    for name in ("devices", "examples", "top"):
        if getattr(arguments, name) < 1:
            raise UsageError(f"--{name} is {getattr(arguments, name)}: use 1 or more")
    if arguments.config:
        load(arguments.config)
    config = read_config(arguments.run_dir)
    mesh = make_mesh(arguments.devices)  # before Orbax starts JAX
    steps = steps_of(arguments.run_dir, arguments.step)
    damping = getattr(config.method, "damping", 0.0)
    examples = first_examples(config, arguments.examples)
    with jax.enable_x64(True):
        found = spectra(config, examples, mesh, steps, arguments)
    rows = [
        {"step": one.step, "curvature": one.curvature}
        | to_json(one.spectrum)
        | {"condition": one.spectrum.condition(damping)}
        for one in found
    ]
    prefix = arguments.out or arguments.run_dir / "spectrum"
    return {
        "run_dir": str(arguments.run_dir),
        "parameters": round(found[0].spectrum.counts_V.sum()),
        "examples": len(examples),
        "devices": arguments.devices,
        "damping": damping,
        "spectra": rows,
        "figures": [str(path) for path in draw(found, damping, prefix)],
    }


def main() -> int:
    """Analyse one run; exit code 2 for a caller's mistake."""
    parser = command_line.parser(
        "Eigenvalues of the curvature at the checkpoints of a run."
    )
    add = parser.add_argument
    add("run_dir", type=Path, metavar="RUN_DIR")
    add("--step", type=int, help="of one checkpoint; all by default")
    add("--curvature", choices=CURVATURES, default="both", help="both by default")
    add("--devices", type=int, default=1, help="to split the examples over; 1")
    add("--examples", type=int, default=EXAMPLES, help="training examples; 10,000")
    add("--top", type=int, default=10, help="eigenvalues of largest modulus to list")
    add("--exact", action="store_true", help="all eigenvalues, whatever the size")
    add("--out", type=Path, metavar="PREFIX", help="of the figures; RUN_DIR/spectrum")
    add("--config", type=Path, metavar="CONFIG.py", help=CONFIG_HELP)
    return command_line.run("spectrum", parser.parse_args(), report, _print)


def _print(said: dict[str, Any]) -> None:
    title = "{run_dir}: {parameters:,} parameters, {examples:,} examples"
    columns = {
        "step": "{step:,}",
        "curvature": "{curvature}",
        "largest": "{largest:.4g}",
        "smallest": "{smallest:.2g}",
        "< 0": "{negative_share:.2%}",
        "= 0": "{zeros:,}",
        "trace": "{trace:.5g}",
        f"condition λ = {said['damping']:g}": "{condition:.4g}",
    }
    rows = [
        [form.format(**row) for form in columns.values()] for row in said["spectra"]
    ]
    print_table(rows, columns, title.format(**said), justify="right")
    for row in said["spectra"]:
        print(_details(row))
    print("drawn: " + ", ".join(said["figures"]))


def _details(row: dict[str, Any]) -> str:
    """The largest eigenvalues of a row, and how it was found."""
    top = " ".join(f"{value:.5g}" for value in row["top"])
    head = f"step {row['step']:,}, {row['curvature']}: {top}"
    if row["method"] == "exact":
        return f"{head}\n  exact: all eigenvalues computed"
    return (
        f"{head}\n  lanczos: residuals up to {max(row['residuals']):.1g}, of the "
        f"smallest {row['smallest_residual']:.1g}; trace ± {row['trace_error']:.2g}; "
        f"< 0: below -{row['zero_below']:.1g}; = 0: the zero rows alone"
    )


if __name__ == "__main__":
    sys.exit(main())
