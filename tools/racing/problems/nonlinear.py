"""Nonlinear least squares to the last digit: 60 overlapping peaks, 180 params."""

from dataclasses import replace

from hfdist import Newton
from hfdist.runs.config import Config
from racing.ablation import WHOLE
from racing.all_points import on_all_points
from racing.contest import Contest, Entrant
from racing.peaks import Peaks, Spectrum


def nonlinear() -> Contest:
    """Seconds to a relative distance of 1e-4 and of 1e-10 from the best fit."""
    method = Newton(
        curvature="gauss_newton",
        damping=1.0,
        damping_rule="nielsen",
        learning_rate=1.0,
    )
    task = Spectrum()
    config = Config(
        method=method,
        model=Peaks(count=task.peaks),
        data=task,
        dtype="float64",
        batch_size=task.points,
    )
    warm, said = replace(WHOLE, warm_start=0.95), "100 CG steps, warm start 0.95"
    tuned = {
        "HF-tuned": Entrant(warm, task.points, said, data=task),
        "Newton": Entrant(method, task.points, "Nielsen's damping from 1", data=task),
    }
    others = replace(task, jacobian=False)
    return on_all_points(config, tuned, (1e-4, 1e-10), others, seconds=10.0)
