"""The paper's network, 784-10-10 on MNIST: 7,960 params."""

from hfdist import SGD, Adam, HessianFree, Momentum, Probes
from hfdist.runs.config import Config
from racing.contest import Contest, first_order, quasi_newton, tuned, untuned
from racing.lbfgs import LBFGS


def baseline() -> Contest:
    """Seconds to a training loss of 0.22."""
    config = Config(method=HessianFree(), batch_size=512)
    method = HessianFree(probes=Probes(every=8, refresh=80))
    return Contest(
        config=config,
        contestants=(
            untuned(config),
            tuned(method, 512, "probes every 8, refreshed every 80 steps"),
            first_order("SGD", SGD, (0.1, 0.3, 1.0), (32, 64, 256)),
            first_order("Nesterov", Momentum, (0.03, 0.1, 0.3), (64, 256)),
            first_order("Adam", Adam, (1e-3, 3e-3, 1e-2), (64, 256)),
            quasi_newton(LBFGS, (10_000, 60_000)),
        ),
        quantity="loss",
        targets=(0.22,),
        seconds=10.0,
        grid_seconds=3.0,
        spacing=1.05,
    )
