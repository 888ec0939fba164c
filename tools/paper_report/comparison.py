"""The paper's Tables 1 to 3, and our runs beside them."""

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from hfdist.runs.evaluate import evaluate
from toolkit.recorded import Run


class Published(NamedTuple):
    """A method's row in the paper's Tables 1, 2 and 3."""

    name: str
    seconds: float  # on one V100
    train_loss: float
    test_accuracy: float


# By the name of the config in configs/paper/, in the paper's order; HF: Hessian-free.
PAPER = {
    "sgd": Published("SGD", 222, 0.2121, 0.9138),
    "newton": Published("Newton", 21257, 2.305, 0.1028),
    "damped_newton": Published("damped Newton", 34933, 0.2837, 0.9003),
    "hf_newton": Published("HF Newton", 244, 0.2614, 0.9099),
    "hf_gauss_newton": Published("HF Gauss-Newton", 246, 0.2049, 0.9239),
}
TOLERANCES = {
    "train_loss": 0.03,
    "final_train_loss": 0.03,
    "test_accuracy": 0.02,
    "mean_test_accuracy": 0.02,
}


def figures_of(name: str, run: Run, whole: int) -> dict[str, Any]:
    """One run in numbers; `whole` is the number of steps in all of its epochs."""
    accuracy = run.test["accuracy"]
    rejected = int((run.train["accepted"] == 0).sum())
    return {
        "config": name,
        "seed": run.config.seed,
        "steps": run.steps,
        "whole": whole,
        "seconds": run.seconds,
        # Of a run that ended early, what its steps would add up to: an extrapolation.
        "total_seconds": run.seconds * whole / run.steps,
        "compile_seconds": float(np.nansum(run.train["compile_seconds"])),
        "train_loss": run.train_loss,
        "final_train_loss": final_train_loss(run),
        "test_accuracy": float(accuracy[-1]),
        "mean_test_accuracy": float(accuracy.mean()),
        "rejected": rejected,
        "indefinite": int(run.train["indefinite"].sum()),
        "infinite_steps": int((~np.isfinite(run.train["step_norm"])).sum()),
        "first_loss": float(run.train["loss"][0]),
        "last_loss": float(run.train["loss"][-1]),
        "diverged": run.diverged,
    }


def final_train_loss(run: Run) -> float:
    """Mean loss of the params at the end over all the training examples.

    NaN for a run that diverged, which leaves no checkpoint.
    """
    if run.diverged:
        return math.nan
    _, train = evaluate(run.folder, run.steps, "train")
    return train.loss


def compare(rows: Sequence[dict[str, Any]], quick: bool) -> list[dict[str, Any]]:
    """Each method's figures over its seeds beside the paper's, in the paper's order.

    A run that neither made all its steps nor diverged is not held against the paper,
    nor is any quick one.
    """
    compared = []
    for config, published in PAPER.items():
        runs = [row for row in rows if row["config"] == config]
        short = any(row["steps"] < row["whole"] for row in runs)
        ended = all(row["steps"] == row["whole"] or row["diverged"] for row in runs)
        method = {
            "config": config,
            "method": published.name,
            "seeds": len(runs),
            "steps": _statistics(runs, "steps"),
            "whole": runs[0]["whole"],
            "diverged": sum(row["diverged"] for row in runs),
            "comparable": ended and not quick,
            "seconds": _statistics(runs, "seconds"),
            "total_seconds": _statistics(runs, "total_seconds")
            | {"paper": published.seconds, "extrapolated": short},
        }
        for name, tolerance in TOLERANCES.items():
            figure = _statistics(runs, name)
            paper = getattr(published, re.sub("^(mean|final)_", "", name))
            difference = figure["mean"] - paper
            # A run that diverged has no params at its end to hold against anything.
            known = method["comparable"] and not (
                name == "final_train_loss" and math.isnan(difference)
            )
            within = abs(difference) <= tolerance if known else None
            figure |= {"paper": paper, "difference": difference, "within": within}
            method[name] = figure
        compared.append(method)
    return compared


def _statistics(runs: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    values = [row[name] for row in runs]
    return {"mean": float(np.mean(values)), "low": min(values), "high": max(values)}


def orderings(compared: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The methods from best to worst by each figure, ours and the paper's."""
    said = []
    for figure, sign in (
        ("total_seconds", 1),
        ("train_loss", 1),
        ("test_accuracy", -1),
    ):
        ours, paper = (
            [
                m["method"]
                for m in sorted(compared, key=partial(_rank, figure, key, sign))
            ]
            for key in ("mean", "paper")
        )
        order = {"figure": figure, "ours": ours, "paper": paper, "same": ours == paper}
        said.append(order)
    return said


def _rank(figure: str, key: str, sign: int, method: dict[str, Any]) -> float:
    """What to sort by, the best first; NaN is worst."""
    value = sign * method[figure][key]
    return math.inf if math.isnan(value) else value
