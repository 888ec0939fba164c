"""Poisson's equation in five dimensions, as in configs/physics/poisson5.py: 10,065
params.
"""

from dataclasses import replace

from hfdist import Adam, HessianFree
from hfdist.runs.config import load
from racing.ablation import WHOLE
from racing.contest import (
    CONFIGS,
    Contest,
    Contestant,
    Entrant,
    first_order,
    quasi_newton,
    untuned,
)
from racing.lbfgs import LBFGS

ALL = 3500  # points of a batch that stays the same, where a method is for such


def poisson5() -> Contest:
    """Seconds to a relative error of 1e-1, 1e-2 and 1e-3, and the error after 60 s.

    Those that solve have J written down; without it the others' steps take a third of
    the time and less.
    """
    path = "physics/poisson5.py"
    with_j = load(CONFIGS / path)
    task, size = with_j.data, with_j.batch_size
    without = replace(task, jacobian=False)
    config = replace(with_j, method=HessianFree(), data=without)
    warm = replace(WHOLE, warm_start=0.95)
    said = f"100 CG steps, warm start 0.95, one batch of {ALL:,}"
    return Contest(
        config=config,
        contestants=(
            untuned(config),
            Contestant("HF-tuned", (Entrant(warm, ALL, said, True, task),)),
            Contestant("Newton", (Entrant(with_j.method, size, path, data=task),)),
            first_order("Adam", Adam, (1e-3, 3e-3, 1e-2), (size, ALL)),
            quasi_newton(LBFGS, (ALL,)),
        ),
        quantity="relative_error",
        targets=(1e-1, 1e-2, 1e-3),
        times=(60.0,),
        seconds=60.0,
        grid_seconds=10.0,
        spacing=1.1,
    )
