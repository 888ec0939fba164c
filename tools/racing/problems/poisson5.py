"""Poisson's equation in five dimensions, as in configs/physics/poisson5.py: 10,065
params and 3,500 points.
"""

from dataclasses import replace

from hfdist.runs.config import load
from racing.ablation import WHOLE
from racing.all_points import on_all_points
from racing.contest import CONFIGS, Contest


def poisson5() -> Contest:
    """Seconds to a relative error of 1e-1 and of 1e-2, and the error after 60 s."""
    path = "physics/poisson5.py"
    config = load(CONFIGS / path)
    tuned = {
        "HF-tuned": (replace(WHOLE, warm_start=0.95), "100 CG steps, warm start 0.95"),
        "Newton": (config.method, f"{path}, by the outputs"),
    }
    others = replace(config.data, jacobian=False)
    return on_all_points(config, tuned, (1e-1, 1e-2), others)
