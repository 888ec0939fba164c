"""Mean loss, and the task's other figures, over the examples of a split."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from hfdist.checks import shown
from hfdist.errors import UsageError
from hfdist.parallel import local_rows, place_chunk
from hfdist.problem import Problem, weighted_sums
from hfdist.pytree import PyTree
from hfdist.runs.config import Config
from hfdist.runs.metrics import RESERVED
from hfdist.runs.run_directory import read_config
from hfdist.runs.spans import Spans
from hfdist.tasks.examples import Examples, readable
from hfdist.tasks.pipeline import Chunk, GlobalBatches, chunks
from hfdist.tasks.returned import figures_of, prepared, reported
from hfdist.tasks.task import Split, Task


class Evaluation(NamedTuple):
    """Means over the examples of a split."""

    loss: float
    figures: dict[str, float]  # what the task reports beside it


def evaluator(
    problem: Problem,
    params: PyTree,
    examples: Examples,
    config: Config,
    mesh: Mesh | None,
) -> Callable[[PyTree], Evaluation]:
    """A function of such params: the Evaluation over all the examples.

    They are held on the devices if they are few, else read anew each time. Raises
    UsageError for what tracing refuses.
    """
    task = config.data
    devices = 1 if mesh is None else mesh.size
    batch_size = min(config.evaluation_batch_size, len(examples))
    batch_size += -batch_size % devices  # the devices share it evenly
    rows = partial(local_rows, mesh=mesh)
    source = GlobalBatches(examples, batch_size, None, rows)
    whole = source.per_epoch
    spans = Spans(0, whole, whole, source.most(whole, batch_size))

    @jax.jit
    def totals(params: PyTree, chunk: Chunk):
        def sums(batch):
            batch = prepared(task, batch, config.dtype)
            outputs = problem.predict(params, batch)
            figures = {
                name: jnp.sum(batch["weights"] * figure_B)
                for name, figure_B in figures_of(task, outputs, batch).items()
            }
            return *weighted_sums(problem, outputs, batch), _unreserved(task, figures)

        return jax.tree.map(jnp.sum, jax.lax.map(sums, chunk))

    def placed():
        return (place_chunk(chunk, mesh) for chunk in chunks(source, spans))

    held = list(placed()) if len(spans) == 1 else None
    jax.eval_shape(totals, params, held[0] if held else next(placed()))

    def evaluate_params(params: PyTree) -> Evaluation:
        parts = [totals(params, chunk) for chunk in held or placed()]
        loss_sum, weight_sum, figures = jax.tree.map(
            lambda *leaves: sum(leaf.item() for leaf in leaves), *parts
        )
        weight_sum = weight_sum or math.nan  # of examples that all have weight 0
        means = {name: total / weight_sum for name, total in figures.items()}
        loss = loss_sum / weight_sum
        report = reported(task, means | {"loss": loss})
        return Evaluation(loss, _unreserved(task, report))

    return evaluate_params


def _unreserved(task: Task, figures: dict[str, Any]) -> dict[str, Any]:
    """The figures. Raises UsageError for a name that metrics.jsonl gives others."""
    for name in figures:
        if not isinstance(name, str):
            raise UsageError(
                f"{type(task).__name__} has a figure named {shown(name)}: name it by "
                f"text"
            )
    if clashing := figures.keys() & RESERVED:
        raise UsageError(
            f"{type(task).__name__} has a figure named {min(clashing)!r}, a name that "
            f"lines of metrics.jsonl use already: give it another"
        )
    return figures


def evaluate(
    run_dir: Path, step: int | None = None, split: Split = "test"
) -> tuple[int, Evaluation]:
    """Evaluate a run's checkpoint, by default the newest: (its step, the means)."""
    from hfdist.runs.resume import restore_params  # Orbax takes a while to import

    config = read_config(run_dir)
    examples = readable(config.data.examples(split))
    with jax.enable_x64(config.dtype == "float64"):
        problem, params = config.build_problem()
        step, params = restore_params(run_dir, params, step)
        return step, evaluator(problem, params, examples, config, None)(params)
