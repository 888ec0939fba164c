"""What a run directory says, in arrays, and what its steps cost."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hfdist import metrics
from hfdist.config import Config
from hfdist.errors import UsageError
from hfdist.pytree import parameter_count
from hfdist.run_directory import read_config

# Forward passes that a product with the matrix takes; see hfdist/curvature.py.
PRODUCT = {"gauss_newton": 4, "hessian": 6, "finite_difference": 3}
GRADIENT = 3
Columns = dict[str, np.ndarray]  # leaves (lines,)


class Run(NamedTuple):
    """A run's config and its metrics, a row for each step and each evaluation."""

    folder: Path
    config: Config
    train: Columns
    test: Columns  # empty arrays before the first evaluation

    @property
    def steps(self) -> int:
        return int(self.train["step"][-1])

    @property
    def seconds(self) -> float:
        """Training alone: neither compilation nor evaluation."""
        return float(self.train["seconds"][-1])

    @property
    def diverged(self) -> bool:
        """Whether the last max_rejected updates were all rejected."""
        last = self.train["accepted"][-self.config.max_rejected :]
        return len(last) == self.config.max_rejected and not last.any()

    @property
    def train_loss(self) -> float:
        """Mean finite loss over the steps of the last epoch."""
        losses = self.train["loss"][self.train["epoch"] == self.train["epoch"][-1]]
        losses = losses[np.isfinite(losses)]
        return float(losses.mean()) if len(losses) else math.nan


def read(folder: Path) -> Run:
    """The run in a folder. Raises UsageError where there is none, or no step yet."""
    config = read_config(folder)
    try:
        lines = metrics.read(folder)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder}/metrics.jsonl cannot be read ({error}): run its `hfdist train` "
            f"command again, with --run-dir {folder}, to continue it"
        ) from None
    train = [line for line in lines if line["split"] == "train"]
    test = [line for line in lines if line["split"] == "test"]
    if not train:
        raise UsageError(f"{folder}/metrics.jsonl holds no step yet: let the run begin")
    evaluations = _columns(test, ("step", "loss", "accuracy", "seconds"))
    return Run(folder, config, _columns(train, train[0]), evaluations)


def _columns(lines: list[metrics.Line], names: Any) -> Columns:
    """Numbers by name; a line without one has NaN."""
    return {
        name: np.array([line.get(name, math.nan) for line in lines], float)
        for name in names
        if name != "split"
    }


def gradient_equivalents(run: Run) -> np.ndarray:
    """Cost of the run up to each step, (steps,), in units of one gradient.

    Forward passes counted as in hfdist/curvature.py: a gradient is 3, a product with
    the Gauss-Newton matrix 4, with the Hessian 6, by finite differences 3. A step is a
    gradient and a product for each CG step (one more for a warm start). An exact solve
    is N products, its factorisation left out. Adapting the damping is a forward pass.
    So the count is of the methods as published: with the input reduction of
    hfdist/coordinates.py products cost less, and an exact solve has fewer unknowns.
    """
    method: Any = run.config.method
    if not hasattr(method, "curvature"):
        return run.train["step"]
    if hasattr(method, "dense"):
        products = np.full(len(run.train["step"]), parameters(run.config))
    else:
        products = run.train["cg_steps"] + (getattr(method, "warm_start", 0) > 0)
    adapting = method.damping_rule == "levenberg_marquardt"
    forwards = GRADIENT + products * PRODUCT[method.curvature] + adapting
    return np.cumsum(forwards) / GRADIENT


def parameters(config: Config) -> int:
    """N, the number of a config's parameters."""
    _, params = config.build_problem(config.data.load("test").inputs.shape[1])
    return parameter_count(params)


def to_json(value: Any) -> str:
    """JSON text in which non-finite numbers are strings, as in metrics.jsonl."""

    def valid(v):
        if isinstance(v, dict):
            return {key: valid(item) for key, item in v.items()}
        if isinstance(v, list | tuple):
            return [valid(item) for item in v]
        return str(v) if isinstance(v, float) and not math.isfinite(v) else v

    return json.dumps(valid(value), indent=2, default=str)
