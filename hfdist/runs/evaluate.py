"""Mean loss and accuracy over the test examples."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from hfdist.data.idx import Examples, Split
from hfdist.data.pipeline import GlobalBatches, decode
from hfdist.parallel import local_rows, place_chunk
from hfdist.problem import Problem, weighted_sums
from hfdist.pytree import PyTree
from hfdist.runs.config import Config
from hfdist.runs.run_directory import read_config


class Evaluation(NamedTuple):
    """Means over the examples of a split."""

    loss: float
    accuracy: float


def evaluator(
    problem: Problem, examples: Examples, config: Config, mesh: Mesh | None
) -> Callable[[PyTree], Evaluation]:
    """params -> Evaluation over all the examples, held on the devices."""
    devices = 1 if mesh is None else mesh.size
    batch_size = min(config.evaluation_batch_size, len(examples.labels))
    batch_size += -batch_size % devices  # the devices share it evenly
    rows = local_rows(batch_size, mesh)
    source = GlobalBatches(examples, batch_size, None, rows)
    batches = place_chunk(source.chunk(0, source.per_epoch), mesh)

    @jax.jit
    def totals(params, batches):
        def sums(batch):
            batch = decode(batch, config.dtype)
            outputs_BC = problem.predict(params, batch)
            correct_B = jnp.argmax(outputs_BC, -1) == batch["labels"]
            loss_sum, weight_sum = weighted_sums(problem, outputs_BC, batch)
            return loss_sum, weight_sum, jnp.sum(batch["weights"] * correct_B)

        return jax.tree.map(jnp.sum, jax.lax.map(sums, batches))

    def evaluate_params(params):
        loss_sum, weight_sum, correct = (s.item() for s in totals(params, batches))
        return Evaluation(loss_sum / weight_sum, correct / weight_sum)

    return evaluate_params


def evaluate(
    run_dir: Path, step: int | None = None, split: Split = "test"
) -> tuple[int, Evaluation]:
    """Evaluate a run's checkpoint, by default the newest: (its step, the means)."""
    from hfdist.runs.resume import restore_params  # Orbax takes a while to import

    config = read_config(run_dir)
    examples = config.data.load(split)
    with jax.enable_x64(config.dtype == "float64"):
        problem, params = config.build_problem(examples.inputs.shape[1])
        step, params = restore_params(run_dir, params, step)
        return step, evaluator(problem, examples, config, mesh=None)(params)
