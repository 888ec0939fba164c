"""Prints what fit, Newton, CG and MINPACK make of the certified regressions.

MINPACK is scipy's least_squares with method="lm", its params scaled by the columns of
its Jacobian, which is ours. Milliseconds are those of a second run: nothing is compiled
in it.
"""

import sys
import time

import jax
import numpy as np
from scipy.optimize import least_squares

import hfdist
from regressions import MODELS, Regression, read
from test_regressions import METHODS, Fit, fits


def fitted(regression: Regression) -> list[str]:
    """From each start, of hfdist.fit: digits, steps, milliseconds."""
    x, y = regression.batch["inputs"], np.squeeze(regression.batch["targets"])

    def model(x, b):
        return regression.model(b, x)

    def cell(start):
        found, seconds = again(lambda: hfdist.fit(model, x, y, start))
        digits = regression.digits(found.params)
        return f"{shown(digits)} | {found.steps} | {1e3 * seconds:.1f}"

    return [cell(start) for start in regression.starts]


def minpack(regression: Regression) -> list[str]:
    """Likewise of MINPACK: digits, or "–" for none, evaluations, milliseconds."""
    y = np.squeeze(regression.batch["targets"])
    model = jax.jit(lambda b: regression.model(b, regression.batch["inputs"]))
    jacobian = jax.jit(jax.jacobian(model))

    def cell(start):
        found, seconds = again(
            lambda: least_squares(
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
        )
        digits = regression.digits(found.x)
        return f"{shown(digits)} | {found.nfev} | {1e3 * seconds:.1f}"

    return [cell(start) for start in regression.starts]


def again(run):
    """What it returns, and the seconds that it takes the second time."""
    run()
    begin = time.perf_counter()
    return run(), time.perf_counter() - begin


def shown(digits: float) -> str:
    return f"{digits:.1f}" if digits >= 6 else "–"


def cell(fit: Fit) -> str:
    steps = fit.steps if fit.digits[-1] >= 6 else len(fit.digits)
    return f"{shown(fit.digits[-1])} | {steps} | {fit.refused}"


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cpu")
    print("| problem | params, from … to | start | fit: digits | steps | ms ", end="")
    for solver in METHODS:
        print(f"| {solver}: digits | steps | refused ", end="")
    print("| MINPACK: digits | evaluations | ms |")
    print("|---" * (9 + 3 * len(METHODS)) + "|")
    for name in sys.argv[1:] or MODELS:
        regression = read(name)
        sizes = np.abs(regression.certified)
        columns = [fitted(regression)]
        columns += [[cell(f) for f in fits(m, regression)] for m in METHODS.values()]
        columns.append(minpack(regression))
        for start, cells in enumerate(zip(*columns, strict=True)):
            head = f"| {name} | {sizes.min():.0e} … {sizes.max():.0e} | {start + 1} | "
            print(head + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
