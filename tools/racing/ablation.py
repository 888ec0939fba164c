"""A method with one piece changed, the others as they are."""

import math
from dataclasses import replace
from typing import Any

from hfdist import CG, HessianFree, Probes
from hfdist.runs.config import load
from racing.contest import CONFIGS, Contest, Contestant, Entrant

# As it comes, and name: what is changed. Without the Kronecker factors or the two-term
# step no direction is worth a step by itself, so that CG is given steps.
UNTUNED = HessianFree()
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


# Of CG on a whole batch, where many of its steps are worth their price.
WHOLE = HessianFree(
    damping=1.0, damping_rule="nielsen", learning_rate=1.0, cg=CG(max_steps=100)
)
WHOLE_PIECES: dict[str, dict[str, Any]] = {
    "as-it-is": {},
    "constant-damping": {"damping_rule": "constant", "damping": 1e-6},
    "levenberg-marquardt": {"damping_rule": "levenberg_marquardt"},
    "warm": {"warm_start": 0.95},
    "progress": {"cg": CG(max_steps=100, rtol=0.0, progress=5e-4)},
    "stored": {"cg": CG(max_steps=100, stored=8)},
    "two-term": {"step_rule": "two_term"},
    "line-search": {"step_rule": "line_search"},
    "diagonal": {"preconditioner": "diagonal"},
    "kronecker": {"preconditioner": "kronecker"},
    "nystrom": {"preconditioner": "nystrom", "probes": Probes(every=5, rank=50)},
    "hessian": {"curvature": "hessian"},
    "hessian-line-search": {"curvature": "hessian", "step_rule": "line_search"},
}


def ablation(
    path: str,
    batch_size: int,
    seconds: float,
    quantity: str = "loss",
    targets: tuple[float, ...] = (),
    base: HessianFree = UNTUNED,
    pieces: dict[str, dict[str, Any]] = PIECES,
) -> Contest:
    """The pieces on a task of configs/: seconds to targets, or the value at the end."""
    config = replace(load(CONFIGS / path), batch_size=batch_size)

    def contestant(name, piece):
        method = replace(base, **piece)
        return Contestant(name, (Entrant(method, batch_size, f"batch {batch_size}"),))

    return Contest(
        config=replace(config, method=base),
        contestants=tuple(contestant(*item) for item in pieces.items()),
        quantity=quantity,
        seconds=seconds,
        grid_seconds=seconds,
        spacing=1.05 if targets else math.inf,
        targets=targets,
        times=() if targets else (seconds,),
    )
