"""A race on a task of few examples, which every step sees all of."""

from dataclasses import replace

from hfdist import Adam, HessianFree
from hfdist.methods.method import Method
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
    tuned: dict[str, tuple[Method, str]],
    targets: tuple[float, ...],
    others: Task | None = None,
    seconds: float = 60.0,
) -> Contest:
    """The relative error of a config's task in so many seconds.

    tuned: by name, a method and its settings for people; others: the form of the task
    that suits the other contestants.
    """
    task, size = config.data, config.batch_size
    config = replace(config, method=HessianFree(), data=others or task)
    return Contest(
        config=config,
        contestants=(
            untuned(config),
            *(
                Contestant(name, (Entrant(method, size, settings, data=task),))
                for name, (method, settings) in tuned.items()
            ),
            first_order("Adam", Adam, (1e-3, 3e-3, 1e-2), (size,)),
            quasi_newton(LBFGS, (size,)),
        ),
        quantity="relative_error",
        targets=targets,
        times=(seconds,),
        seconds=seconds,
        grid_seconds=seconds / 6,
        spacing=1.1,
    )
