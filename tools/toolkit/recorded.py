"""What a run directory says, in arrays, and what its steps cost."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hfdist.errors import UsageError
from hfdist.layers import layers_of
from hfdist.pytree import PyTree, parameter_count
from hfdist.runs import metrics
from hfdist.runs.config import Config
from hfdist.runs.run_directory import read_config, read_record

# Forward passes that a product with the matrix takes; see hfdist/quadratics.py.
PRODUCT = {"gauss_newton": 4, "hessian": 6, "finite_difference": 3}
GRADIENT = 3
Columns = dict[str, np.ndarray]  # leaves (lines,)
# What the tools read from the lines of steps, beside what every reader does; where a
# line may lack it, it has NaN.
ALSO = {"damping", "rho", "cg_steps", "step_norm", "compile_seconds"}
MAY_LACK = {"compile_seconds"}
CONFIG_HELP = "the runs' config file, if it defines or imports classes of your own"


class Run(NamedTuple):
    """A run's config and its metrics, a row for each step and each evaluation."""

    folder: Path
    config: Config
    train: Columns
    test: Columns  # empty arrays before the first evaluation

    @property
    def figures(self) -> list[str]:
        """What the task reports of an evaluation beside the loss."""
        return [name for name in self.test if name not in metrics.EVERY]

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
    """The run in a folder.

    Raises UsageError where there is none, no step yet, or what no training wrote.
    """
    config, lines = read_config(folder), metrics.read(folder)
    if not any(line["split"] == "train" for line in lines):
        raise UsageError(f"{folder}/metrics.jsonl holds no step yet: let the run begin")
    try:
        train, test = (_columns(lines, split) for split in ("train", "test"))
        _check(train, test)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{folder}/metrics.jsonl is damaged: {error}; put the file back"
        ) from None
    return Run(folder, config, train, test)


def _columns(lines: list[metrics.Line], split: str) -> Columns:
    """Numbers by name. Raises ValueError for a line that has something else there."""
    chosen = [line for line in lines if line["split"] == split]
    also = ALSO if split == "train" else {name for line in chosen for name in line}
    names = {*metrics.NUMBERS[split], *also} - {"split"}
    return {name: np.array(list(_numbers(chosen, name))) for name in sorted(names)}


def _numbers(lines: list[metrics.Line], name: str) -> Iterable[float]:
    for line in lines:
        value = line.get(name, math.nan if name in MAY_LACK else None)
        if not isinstance(value, int | float):
            raise ValueError(f"{name} of step {line['step']} is no number")
        yield float(value)


def _check(train: Columns, test: Columns) -> None:
    """Raise ValueError unless the lines are those of a training."""
    steps = np.arange(1, len(train["step"]) + 1)
    if not np.array_equal(train["step"], steps):
        raise ValueError(f"its steps are not 1, 2 … {len(steps)}")
    if not np.all(np.isin(test["step"], steps)):
        raise ValueError("an evaluation is of a step that it has not")
    for name in ("epoch", "seconds"):
        values = np.concatenate([train[name], test[name]])
        if not np.all(np.isfinite(values) & (values >= 0)):
            raise ValueError(f"its {name} are not all 0 or more")


def provenance(folder: Path) -> dict[str, Any]:
    """Where a run was made: device, versions and git_commit of its config.json."""
    record = read_record(folder)
    try:
        device, versions = record["device"], record["versions"]
        return {
            "device": {name: str(device[name]) for name in ("platform", "kind")},
            "versions": {name: str(version) for name, version in versions.items()},
            "git_commit": str(record["git_commit"]),
        }
    except (KeyError, TypeError, AttributeError):
        raise UsageError(
            f"{folder}/config.json does not say where the run was made (its device, "
            f"versions or git_commit): put the file back"
        ) from None


def gradient_equivalents(run: Run) -> np.ndarray:
    """Cost of the run up to each step, (steps,), in units of one gradient.

    Forward passes counted as in hfdist/quadratics.py: a gradient is 3, a product with
    the Gauss-Newton matrix 4, with the Hessian 6, by finite differences 3; with the
    layerwise one L + 1 for L layers, taken to be alike. A step is a gradient and a
    product for each CG step (one more for a warm start). An exact solve is N products,
    its factorisation left out. Adapting the damping is a forward pass. So the count is
    of the methods as published: with the input reduction of hfdist/coordinates.py
    products cost less, and an exact solve has fewer unknowns.
    """
    method: Any = run.config.method
    if not hasattr(method, "curvature"):
        return run.train["step"]
    if hasattr(method, "dense"):
        products = np.full(len(run.train["step"]), parameters(run.config))
    else:
        products = run.train["cg_steps"] + (getattr(method, "warm_start", 0) > 0)
    adapting = method.damping_rule != "constant"
    forwards = GRADIENT + products * _product(run.config) + adapting
    return np.cumsum(forwards) / GRADIENT


def _product(config: Config) -> int:
    """Forward passes that a product takes."""
    method: Any = config.method
    if method.curvature == "layerwise_gauss_newton":
        return len(layers_of(_params(config))) + 1
    return PRODUCT[method.curvature]


def parameters(config: Config) -> int:
    """N, the number of a config's parameters."""
    return parameter_count(_params(config))


def _params(config: Config) -> PyTree:
    with jax.enable_x64(config.dtype == "float64"):
        _, params = config.build_problem()
    return params


class Story(NamedTuple):
    """All of a run that an interruption must not change."""

    lines: list[dict[str, Any]]  # without their seconds
    step: int  # of the newest checkpoint
    checksums: Any  # of its arrays


def story(run_dir: Path) -> Story:
    """What the folder of a run tells."""
    text = (run_dir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    lines = [{k: v for k, v in x.items() if "seconds" not in k} for x in lines]
    newest = max((run_dir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    saved = json.loads((newest / "record" / "metadata").read_text())
    return Story(lines, saved["step"], (saved["checksums"], saved["parts"]))
