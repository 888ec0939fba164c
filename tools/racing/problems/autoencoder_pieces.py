"""The deep autoencoder, one piece of HessianFree() changed at a time."""

from racing.ablation import ablation
from racing.contest import Contest


def autoencoder_pieces() -> Contest:
    """Squared error of the test images after 30 s."""
    return ablation(
        "mnist/autoencoder.py", batch_size=500, seconds=30.0, quantity="squared_error"
    )
