"""784-128-10 on MNIST, as in configs/mnist/wide.py: 101,770 params."""

from hfdist import SGD, Adam, HessianFree, Momentum
from hfdist.models.mlp import MLP
from hfdist.runs.config import Config
from racing.contest import Contest, first_order, quasi_newton, tuned_by, untuned
from racing.lbfgs import LBFGS


def wide() -> Contest:
    """Seconds to a training loss of 0.074, and of 0.01."""
    config = Config(method=HessianFree(), batch_size=512, model=MLP(hidden=(128,)))
    return Contest(
        config=config,
        contestants=(
            untuned(config),
            tuned_by("mnist/wide_kronecker.py"),
            first_order("SGD", SGD, (0.1, 0.3, 1.0), (32, 64, 256)),
            first_order("Nesterov", Momentum, (0.1, 0.3, 1.0), (64, 256, 512)),
            first_order("Adam", Adam, (1e-3, 3e-3, 1e-2), (64, 256, 512)),
            quasi_newton(LBFGS, (10_000, 60_000)),
        ),
        quantity="loss",
        targets=(0.074, 0.01),
        seconds=10.0,
        grid_seconds=5.0,
        spacing=1.05,
    )
