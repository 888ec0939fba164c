"""The deep autoencoder of configs/mnist/autoencoder.py: 2,837,314 params."""

from hfdist import SGD, Adam, HessianFree, Momentum
from hfdist.models.autoencoder import Autoencoder
from hfdist.runs.config import Config
from hfdist.tasks.reconstruction import Reconstruction
from racing.contest import Contest, first_order, quasi_newton, tuned_by, untuned
from racing.lbfgs import LBFGS


def autoencoder() -> Contest:
    """Squared error of the test images after 60, 120 and 300 s."""
    config = Config(
        method=HessianFree(),
        model=Autoencoder(),
        data=Reconstruction(),
        batch_size=500,  # that of the tuned one
    )
    return Contest(
        config=config,
        contestants=(
            untuned(config),
            tuned_by("mnist/autoencoder_kronecker.py"),
            first_order("SGD", SGD, (1e-3, 3e-3, 1e-2), (128, 500)),
            first_order("Nesterov", Momentum, (3e-4, 1e-3, 3e-3), (128, 500)),
            first_order("Adam", Adam, (3e-4, 1e-3, 3e-3), (128, 500)),
            quasi_newton(LBFGS, (5_000, 20_000)),
        ),
        quantity="squared_error",
        times=(60.0, 120.0, 300.0),
        seconds=300.0,
        grid_seconds=20.0,
        spacing=1.2,
    )
