"""A race on a task of few examples, which every step sees all of."""

from dataclasses import replace

from hfdist import Adam, HessianFree
from hfdist.methods.method import Method
from hfdist.runs.config import load
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


def on_all_points(
    path: str, tuned: dict[str, tuple[Method, str]], targets: tuple[float, ...]
) -> Contest:
    """The relative error of a config's physics in 60 s.

    tuned: by name, a method and its settings for people.
    """
    config = replace(load(CONFIGS / path), method=HessianFree())
    size = config.batch_size
    return Contest(
        config=config,
        contestants=(
            untuned(config),
            *(
                Contestant(name, (Entrant(method, size, settings),))
                for name, (method, settings) in tuned.items()
            ),
            first_order("Adam", Adam, (1e-3, 3e-3, 1e-2), (size,)),
            quasi_newton(LBFGS, (size,)),
        ),
        quantity="relative_error",
        targets=targets,
        times=(60.0,),
        seconds=60.0,
        grid_seconds=10.0,
        spacing=1.1,
    )
