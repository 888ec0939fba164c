"""A race on a task of few examples, which every step sees all of."""

from dataclasses import replace

from hfdist import Adam, HessianFree
from hfdist.runs.config import Config
from hfdist.tasks.task import Task
from racing.contest import (
    Contest,
    Contestant,
    Entrant,
    first_order,
    quasi_newton,
    untuned,
)
from racing.lbfgs import LBFGS


def on_all_points(
    config: Config,
    tuned: dict[str, Entrant],
    targets: tuple[float, ...],
    others: Task | None = None,
    seconds: float = 60.0,
    whole: int | None = None,
) -> Contest:
    """The relative error of a config's task in so many seconds.

    others: the form of the task that suits the contestants that are not tuned; whole:
    points of a batch that stays the same, the config's by default.
    """
    whole = whole or config.batch_size
    sizes = tuple(sorted({config.batch_size, whole}))
    config = replace(config, method=HessianFree(), data=others or config.data)
    return Contest(
        config=config,
        contestants=(
            untuned(config),
            *(Contestant(name, (entrant,)) for name, entrant in tuned.items()),
            first_order("Adam", Adam, (1e-3, 3e-3, 1e-2), sizes),
            quasi_newton(LBFGS, (whole,)),
        ),
        quantity="relative_error",
        targets=targets,
        times=(seconds,),
        seconds=seconds,
        grid_seconds=seconds / 6,
        spacing=1.1,
    )
