"""The comparison with the paper in tables, as text."""

import math
from collections.abc import Sequence
from typing import Any

from paper_report.document import Grid

Methods = Sequence[dict[str, Any]]  # as comparison.compare gives them

FIGURES = {
    "total_seconds": "training time",
    "train_loss": "training loss",
    "test_accuracy": "test accuracy",
}


def tables(results: dict[str, Any]) -> list[Grid]:
    """Tables 1 to 3 of the paper, and the order of the methods in each."""
    compared, machine = results["methods"], results["machine"]
    unreduced = results["unreduced"]
    return [
        _time_table(compared, machine),
        *([_unreduced_table(unreduced, compared, machine)] if unreduced else ()),
        _table(
            "Table 2. Training loss: mean over the steps of the last epoch, and of the "
            "params at the end over all training examples",
            compared,
            {"train_loss": "last epoch's mean", "final_train_loss": "at the end"},
        ),
        _table(
            "Table 3. Test accuracy: at the end, and its mean over the evaluations, "
            "one an epoch",
            compared,
            {"test_accuracy": "at the end", "mean_test_accuracy": "mean"},
        ),
        Grid(
            "Order of the methods, from best to worst",
            ("by", "here", "paper", "the same"),
            [
                (
                    FIGURES[order["figure"]],
                    ", ".join(order["ours"]),
                    ", ".join(order["paper"]),
                    "yes" if order["same"] else "no",
                )
                for order in results["orderings"]
            ],
        ),
    ]


def _time_table(compared: Methods, machine: str) -> Grid:
    sgd = compared[0]["total_seconds"]
    rows = []
    for method in compared:
        total = method["total_seconds"]
        mark = " extrapolated" if total["extrapolated"] else ""
        rows.append(
            (
                _name(method),
                _count(method["steps"]),
                _seconds(method["seconds"]),
                f"{_seconds(total)}{mark}",
                times(total["mean"] / sgd["mean"]) + mark,
                f"{total['paper']:,.0f}",
                times(total["paper"] / sgd["paper"]),
            )
        )
    whole = f"{compared[0]['whole']:,} steps"
    return Grid(
        "Table 1. Training time in seconds, without compilation and evaluation",
        (
            "method",
            "steps run",
            f"measured on {machine}",
            f"{whole} on {machine}",
            "SGD = 1",
            "paper, V100",
            "paper, SGD = 1",
        ),
        rows,
    )


def _unreduced_table(rows: Methods, compared: Methods, machine: str) -> Grid:
    by_name = {method["config"]: method for method in compared}
    cells = []
    for row in rows:
        method = by_name[row["config"]]
        reduced = method["seconds"]["mean"] / method["steps"]["mean"]
        cells.append(
            (
                method["method"],
                f"{row['steps']}",
                f"{row['seconds'] / row['steps']:.3g}",
                f"{row['total_seconds']:,.0f} extrapolated",
                f"{reduced:.3g}",
                f"{method['total_seconds']['paper']:,.0f}",
            )
        )
    return Grid(
        "Exact solves over all params, without input reduction, in seconds",
        (
            "method",
            "steps run",
            f"a step on {machine}",
            f"{compared[0]['whole']:,} steps",
            "a reduced step",
            "paper, V100",
        ),
        cells,
    )


def _table(title: str, compared: Methods, figures: dict[str, str]) -> Grid:
    columns = ["method", "paper"]
    for label in figures.values():
        columns += [f"{label} here", "difference", "within"]
    rows = []
    for method in compared:
        row = [_name(method), f"{method[next(iter(figures))]['paper']:.4f}"]
        for name in figures:
            figure = method[name]
            if name == "final_train_loss" and math.isnan(figure["mean"]):
                row += ["–"] * 3
                continue
            verdict = {True: "yes", False: "no", None: "cut short"}
            row += [_range(figure), f"{figure['difference']:+.4f}"]
            row.append(verdict[figure["within"]])
        rows.append(tuple(row))
    tolerance = "±0.03" if "train_loss" in figures else "±0.02"
    columns = [f"within {tolerance}" if c == "within" else c for c in columns]
    return Grid(title, tuple(columns), rows)


def _name(method: dict[str, Any]) -> str:
    return method["method"] + (" (diverged)" if method["diverged"] else "")


def _count(figure: dict[str, Any]) -> str:
    low, high = figure["low"], figure["high"]
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _range(figure: dict[str, Any], form: str = ".4f") -> str:
    """mean (least–greatest), or the mean alone where all are the same."""
    mean, low, high = (format(figure[k], form) for k in ("mean", "low", "high"))
    return mean if low == high else f"{mean} ({low}–{high})"


def _seconds(figure: dict[str, Any]) -> str:
    return _range(figure, ",.0f" if figure["mean"] >= 100 else ".2f")


def times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"
