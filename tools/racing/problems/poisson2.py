"""Poisson's equation in a square, as in configs/physics/poisson.py: 257 params."""

from dataclasses import replace

from hfdist import Probes
from hfdist.runs.config import load
from racing.ablation import WHOLE
from racing.all_points import on_all_points
from racing.contest import CONFIGS, Contest, Entrant


def poisson2() -> Contest:
    """Seconds to a relative error of 1e-4 and of 1e-6, and the error after 60 s."""
    path = "physics/poisson.py"
    config = load(CONFIGS / path)
    nystrom = replace(WHOLE, preconditioner="nystrom", probes=Probes(every=5, rank=50))
    said, size = "100 CG steps, Nyström of rank 50 every 5", config.batch_size
    tuned = {
        "HF-tuned": Entrant(nystrom, size, said),
        "Newton": Entrant(config.method, size, path),
    }
    return on_all_points(config, tuned, (1e-4, 1e-6))
