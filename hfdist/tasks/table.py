"""Regression from a table: columns of numbers to columns of numbers."""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, NamedTuple

import jax.numpy as jnp
import numpy as np

from hfdist.checks import Real, Whole
from hfdist.errors import UsageError
from hfdist.losses import squared_error
from hfdist.models.model import functional
from hfdist.problem import Problem
from hfdist.tasks.examples import Arrays
from hfdist.tasks.table_files import SCIKIT, chosen, matrix, read
from hfdist.tasks.task import Task


class Sides(NamedTuple):
    """A table's inputs and targets, in its own units."""

    inputs: np.ndarray  # (n, d)
    targets: np.ndarray  # (n, C)


@dataclass(frozen=True, kw_only=True)
class Table(Task):
    """Regression by squared error, on inputs and targets that are standardised,

        x ← (x - mean) / deviation,

    by the training rows; a column that is constant there becomes 0. Evaluations report
    R², the share of the test rows' variance about their mean that is explained; of
    several targets, of the sum of their variances.
    """

    file: Path
    """A CSV file (a row of names, then numbers; split by comma, semicolon or tab), an
    NPZ file of arrays of equal length (column i of a matrix X is X[i]), or
    sklearn:diabetes, sklearn:linnerud."""
    target: tuple[str, ...]
    """Columns to predict; a matrix's name stands for all of its columns."""
    inputs: tuple[str, ...] = ()
    """Columns to predict from; by default all others."""
    test_fraction: Annotated[float, Real(0, above=True, below=1)] = 0.2
    """Share of the rows that is kept for the test split."""
    split_seed: Annotated[int, Whole(0, 2**32 - 1)] = 0
    """Seed by which the rows of the test split are drawn."""

    def __post_init__(self):
        super().__post_init__()
        if not self.target:
            raise UsageError("Table.target is empty: name the columns to predict")

    def examples(self, split):
        """inputs (n, d) and targets (n, C), standardised; centred (n, C), for R²."""
        sides = self._sides()
        train, test = self._rows(len(sides.targets))
        rows = {"train": train, "test": test}[split]
        x, y = (_standardised(side, train)[rows] for side in sides)
        return Arrays({"inputs": x, "targets": y, "centred": y - y.mean(0)})

    def problem(self, model, seed):
        sides = self._sides()
        module = model.build(sides.inputs.shape[1], sides.targets.shape[1], seed)
        predict, params = functional(module)
        return Problem(predict, squared_error), params

    def figures(self, outputs, batch):
        """The squared error, and that of predicting the split's mean."""
        return {
            "error": squared_error(outputs, batch),
            "variance": jnp.sum(jnp.square(batch["centred"]), -1),
        }

    def report(self, means):
        """R² = 1 - Σ (z - t)² / Σ (t - mean t)²; NaN for targets that are all equal."""
        error, variance = means["error"], means["variance"]
        return {"r_squared": 1 - error / variance if variance else math.nan}

    def _sides(self) -> Sides:
        scikit = str(self.file).startswith(SCIKIT)
        return _sides(self, 0 if scikit else _stamp(self.file))

    def _rows(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the training and the test split, each in the file's order."""
        held_out = round(self.test_fraction * n)
        if held_out < 1 or n - held_out < 2:
            raise UsageError(
                f"table {self.file} has too few rows: {n}, of which "
                f"--data.test-fraction {self.test_fraction:g} keeps {held_out} for the "
                f"test split; it takes one there and two to train on"
            )
        order = np.random.default_rng(self.split_seed).permutation(n)
        return np.sort(order[held_out:]), np.sort(order[:held_out])


def _stamp(path: Path) -> int:
    """By which a file that was written anew is known; of one that is not there, 0."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=1)
def _sides(task: Table, stamp: int) -> Sides:
    """Read once for both splits and the model's sizes."""
    del stamp
    columns = read(task.file)
    targets = chosen(task.file, columns, task.target)
    others = [name for name in columns if name not in targets]
    inputs = chosen(task.file, columns, task.inputs or others)
    for name in inputs:
        if name in targets:
            raise UsageError(
                f"table {task.file}: column {name!r} is both an input and a target: "
                f"take it out of --data.inputs"
            )
    if not inputs:
        raise UsageError(
            f"table {task.file} has no column beside the targets to predict from"
        )
    sides = Sides(*(matrix(task.file, columns, names) for names in (inputs, targets)))
    train, _ = task._rows(len(sides.targets))
    for name, column in zip(targets, sides.targets[train].T, strict=True):
        if np.ptp(column) == 0:
            raise UsageError(
                f"table {task.file}: target {name!r} is {column[0]:g} in every "
                f"training row: there is nothing to learn"
            )
    return sides


def _standardised(columns: np.ndarray, train: np.ndarray) -> np.ndarray:
    """(x - mean) / deviation by the training rows; 0 where all of them are equal."""
    known = columns[train]
    varies = np.ptp(known, 0) > 0
    deviation = np.where(varies, known.std(0), 1)
    return np.where(varies, (columns - known.mean(0)) / deviation, 0)
