"""HessianFree() with one piece changed, the others as they are."""

import math
from dataclasses import replace
from typing import Any

from hfdist import CG, HessianFree, Probes
from hfdist.runs.config import load
from racing.contest import CONFIGS, Contest, Contestant, Entrant

# name: what is changed. Without the Kronecker factors or the two-term step no direction
# is worth a step by itself, so that CG is given steps.
PIECES: dict[str, dict[str, Any]] = {
    "as-it-is": {},
    "constant-damping": {"damping_rule": "constant"},
    "rho-of-own-batch": {"damping_rule": "levenberg_marquardt"},
    "no-preconditioner": {"preconditioner": "none", "cg": CG(max_steps=10)},
    "diagonal": {"preconditioner": "diagonal", "cg": CG(max_steps=10)},
    "nystrom": {
        "preconditioner": "nystrom",
        "probes": Probes(every=5),
        "cg": CG(max_steps=10),
    },
    "probe-every-step": {"probes": Probes(every=1)},
    "fixed-rate": {"step_rule": "fixed_rate", "cg": CG(max_steps=1)},
    "line-search": {"step_rule": "line_search", "cg": CG(max_steps=1)},
    "cg-3": {"cg": CG(max_steps=3)},
    "cg-3-warm": {"cg": CG(max_steps=3), "warm_start": 0.95},
    "cg-30": {"cg": CG(max_steps=30)},
    "cg-30-progress": {"cg": CG(max_steps=30, rtol=0.0, progress=5e-4)},
    "cg-30-stored": {"cg": CG(max_steps=30, stored=6)},
}


def ablation(
    path: str,
    batch_size: int,
    seconds: float,
    quantity: str = "loss",
    targets: tuple[float, ...] = (),
) -> Contest:
    """The pieces on a task of configs/: seconds to targets, or the value at the end."""
    config = replace(load(CONFIGS / path), batch_size=batch_size)

    def contestant(name, piece):
        method = replace(HessianFree(), **piece)
        return Contestant(name, (Entrant(method, batch_size, f"batch {batch_size}"),))

    return Contest(
        config=replace(config, method=HessianFree()),
        contestants=tuple(contestant(*item) for item in PIECES.items()),
        quantity=quantity,
        seconds=seconds,
        grid_seconds=seconds,
        spacing=1.05 if targets else math.inf,
        targets=targets,
        times=() if targets else (seconds,),
    )
