"""Poisson's equation in five dimensions, as in configs/physics/poisson5.py: 10,065
params.
"""

from dataclasses import replace

from hfdist.runs.config import load
from racing.ablation import WHOLE
from racing.all_points import on_all_points
from racing.contest import CONFIGS, Contest, Entrant

ALL = 3500  # points of a batch that stays the same, where a method is for such


def poisson5() -> Contest:
    """Seconds to a relative error of 1e-1, 1e-2 and 1e-3, and the error after 60 s.

    Those that solve have J written down; without it the others' steps take a third of
    the time and less.
    """
    path = "physics/poisson5.py"
    config = load(CONFIGS / path)
    task, size = config.data, config.batch_size
    warm = replace(WHOLE, warm_start=0.95)
    said = f"100 CG steps, warm start 0.95, one batch of {ALL:,}"
    tuned = {
        "HF-tuned": Entrant(warm, ALL, said, True, task),
        "Newton": Entrant(config.method, size, path, data=task),
    }
    without = replace(task, jacobian=False)
    return on_all_points(config, tuned, (1e-1, 1e-2, 1e-3), without, whole=ALL)
