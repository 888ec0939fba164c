"""Prints what Newton, CG and MINPACK make of the certified regressions, as a table.

MINPACK is scipy's least_squares with method="lm", its params scaled by the columns of
its Jacobian, which is ours.
"""

import sys

import jax
import numpy as np
from scipy.optimize import least_squares

from regressions import MODELS, Regression, read
from test_regressions import METHODS, Fit, fits


def minpack(regression: Regression) -> list[str]:
    """The digits from each start, or "–" for none, and the evaluations."""
    y = np.squeeze(regression.batch["targets"])
    model = jax.jit(lambda b: regression.model(b, regression.batch["inputs"]))
    jacobian = jax.jit(jax.jacobian(model))

    def cell(start):
        found = least_squares(
            lambda b: np.asarray(model(b)) - y,
            start,
            jac=lambda b: np.asarray(jacobian(b)),
            method="lm",
            x_scale="jac",
            ftol=1e-15,
            xtol=1e-15,
            gtol=1e-15,
            max_nfev=10_000,
        )
        return f"{shown(regression.digits(found.x))} | {found.nfev}"

    return [cell(start) for start in regression.starts]


def shown(digits: float) -> str:
    return f"{digits:.1f}" if digits >= 6 else "–"


def cell(fit: Fit) -> str:
    steps = fit.steps if fit.digits[-1] >= 6 else len(fit.digits)
    return f"{shown(fit.digits[-1])} | {steps} | {fit.refused}"


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cpu")
    print("| problem | params, from … to | start ", end="")
    for solver in METHODS:
        print(f"| {solver}: digits | steps | refused ", end="")
    print("| MINPACK: digits | evaluations |")
    print("|---" * (5 + 3 * len(METHODS)) + "|")
    for name in sys.argv[1:] or MODELS:
        regression = read(name)
        sizes = np.abs(regression.certified)
        columns = [[cell(f) for f in fits(m, regression)] for m in METHODS.values()]
        for start, cells in enumerate(zip(*columns, minpack(regression), strict=True)):
            head = f"| {name} | {sizes.min():.0e} … {sizes.max():.0e} | {start + 1} | "
            print(head + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
