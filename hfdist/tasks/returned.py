"""What a task's functions return, checked: a user may have written them.

A figure of another shape, or a batch that lost its weights, would not fail: it would
make every mean wrong, by the padding.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from hfdist.checks import shown
from hfdist.errors import UsageError
from hfdist.models.model import Model
from hfdist.problem import Batch, Problem
from hfdist.pytree import PyTree, check_differentiable
from hfdist.tasks.task import Task


def problem_of(task: Task, model: Model, seed: int) -> tuple[Problem, PyTree]:
    """The task's problem. Raises UsageError unless it is one, with params to train."""
    made: Any = task.problem(model, seed)
    name = f"{type(task).__name__}.problem"
    pair = isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Problem)
    if not pair:
        raise UsageError(
            f"{name} returned {shown(made)}: return (Problem(predict, loss), params)"
        )
    _check_savable(name, made[1])
    check_differentiable(made[1])
    return made


def _check_savable(name: str, params: PyTree) -> None:
    """Raise UsageError for params that no checkpoint would hold, or give back."""
    paths = Counter(
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    )
    for path, count in paths.items():
        if count > 1:
            raise UsageError(
                f"{name} returned {count} params by the name {path} in a checkpoint: "
                f"leave the dot out of their names"
            )
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nnx.Pytree))
    if not leaves:
        raise UsageError(f"{name} returned no params: return those to train")
    for leaf in leaves:
        if isinstance(leaf, nnx.Pytree):
            raise UsageError(
                f"{name} returned params in a {type(leaf).__name__}: split it, by "
                f"hfdist.models.model.functional, as checkpoints hold plain trees"
            )
        if np.size(leaf) == 0:
            raise UsageError(
                f"{name} returned params of shape {np.shape(leaf)}, which are none: "
                f"leave them out"
            )


def prepared(task: Task, batch: Batch, dtype: str) -> Batch:
    """The batch that the task prepares of one that was read.

    Raises UsageError for one that lost its weights, by which padding counts for
    nothing, or some of its rows.
    """
    name = f"{type(task).__name__}.prepare"
    words = "a dict with entries by name, {**batch, ...}"
    made = _mapping(name, task.prepare(batch, dtype), words)
    given = np.shape(made["weights"]) if "weights" in made else ()
    wanted = np.shape(batch["weights"])
    if given != wanted:
        raise UsageError(
            f"{name} returned {f'weights {given}' if given else 'no weights'} for a "
            f"batch with weights {wanted}: keep the entry, {{**batch, ...}}, and a row "
            f"for each example"
        )
    return made


def figures_of(task: Task, outputs: Any, batch: Batch) -> dict[str, Array]:
    """The task's figures of a batch. Raises UsageError for one that is not (B,)."""
    name = f"{type(task).__name__}.figures"
    words = "a dict of figures by name, (B,) each"
    figures = _mapping(name, task.figures(outputs, batch), words)
    wanted = np.shape(batch["weights"])
    for key, figure in figures.items():
        shape = getattr(figure, "shape", None)
        if shape != wanted:
            raise UsageError(
                f"{name} returned {key!r} of shape {shape or ()}: return one number "
                f"per example, shape {wanted}, of which the mean is taken"
            )
        if jnp.issubdtype(figure.dtype, jnp.complexfloating):
            raise UsageError(f"{name} returned {key!r} of {figure.dtype}: return reals")
    return dict(figures)


def reported(task: Task, means: dict[str, float]) -> dict[str, float]:
    """The task's report. Raises UsageError for what is no number, NaN excepted."""
    name = f"{type(task).__name__}.report"
    report = _mapping(name, task.report(means), "a dict of numbers by name")
    return {key: _number(f"{name}'s {key!r}", value) for key, value in report.items()}


def _mapping(name: str, made: Any, wanted: str) -> Mapping[str, Any]:
    """What a function returned. Raises UsageError for what is no mapping."""
    if not isinstance(made, Mapping):
        raise UsageError(f"{name} returned a {type(made).__name__}: return {wanted}")
    return made


def _number(name: str, value: Any) -> float:
    """As a float: of Python, NumPy or JAX."""
    plain = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(plain, int | float):
        raise UsageError(f"{name} is {shown(value)}: return a number")
    return float(plain)
