"""What a race is: a problem, what is to be reached, and who runs."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

from hfdist import Adam, HessianFree
from hfdist.methods.method import Method
from hfdist.runs.config import Config, load
from hfdist.runs.progress import words
from hfdist.tasks.task import Task

CONFIGS = Path(__file__).parent.parent.parent / "configs"


class Entrant(NamedTuple):
    """An optimiser with all its settings."""

    method: Method
    batch_size: int
    settings: str  # for people
    fixed: bool = False  # every step is of the first batch
    data: Task | None = None  # another form of the contest's task; None: that itself


class Contestant(NamedTuple):
    """One line of the table: of its grid the best entrant runs."""

    name: str  # without spaces or commas
    grid: tuple[Entrant, ...]
    first_order: bool = False  # by gradients alone, L-BFGS too


class Contest(NamedTuple):
    """A problem, with either targets to reach or times to be read at."""

    config: Config  # task, model and dtype; its method and batch are HF's, untuned
    contestants: tuple[Contestant, ...]
    quantity: str  # "loss" of the training examples, or a figure of the test examples
    seconds: float  # of training, for each contestant
    grid_seconds: float  # for each entrant of a grid
    spacing: float  # of evaluations: the next after so many times more steps
    targets: tuple[float, ...] = ()  # of the quantity, the hardest last
    times: tuple[float, ...] = ()  # seconds

    @property
    def label(self) -> str:
        """What is compared, for people."""
        of = "training" if self.quantity == "loss" else "test"
        return f"{of} {words(self.quantity)}"


def untuned(config: Config) -> Contestant:
    """Hessian-free as it comes, at the batch of the problem."""
    settings = f"HessianFree(), batch {config.batch_size}"
    entrant = Entrant(config.method, config.batch_size, settings)
    return Contestant("HF-untuned", (entrant,))


def tuned(method: Method, batch_size: int, settings: str) -> Contestant:
    """Hessian-free with settings of the problem."""
    settings = f"{settings}, batch {batch_size}"
    return Contestant("HF-tuned", (Entrant(method, batch_size, settings),))


def tuned_by(path: str) -> Contestant:
    """Hessian-free as a file in configs/ has it."""
    config = load(CONFIGS / path)
    return tuned(config.method, config.batch_size, path)


def first_order(
    name: str,
    make: Callable[..., Method],
    rates: Iterable[float],
    batch_sizes: Iterable[int],
) -> Contestant:
    """A first-order method with every rate at every batch."""
    grid = tuple(
        Entrant(make(learning_rate=rate), size, f"α {rate:g}, batch {size:,}")
        for size, rate in product(batch_sizes, rates)
    )
    return Contestant(name, grid, first_order=True)


def quasi_newton(make: Callable[[], Method], batch_sizes: Iterable[int]) -> Contestant:
    """L-BFGS on one batch throughout: line searches compare values of one f."""
    grid = tuple(
        Entrant(make(), size, f"one batch of {size:,}", fixed=True)
        for size in batch_sizes
    )
    return Contestant("L-BFGS", grid, first_order=True)


def against_adam(path: str, seconds: float, quantity: str = "loss") -> Contest:
    """HessianFree() against Adam at its usual rate, on a task of configs/."""
    config = load(CONFIGS / path)
    config = replace(config, method=HessianFree())
    adam = first_order("Adam", Adam, (1e-3,), (config.batch_size,))
    return Contest(
        config=config,
        contestants=(untuned(config), adam),
        quantity=quantity,
        times=(seconds,),
        seconds=seconds,
        grid_seconds=seconds,
        spacing=math.inf,
    )
