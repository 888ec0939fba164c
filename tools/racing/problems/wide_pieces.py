"""784-128-10 on MNIST, one piece of HessianFree() changed at a time."""

from racing.ablation import ablation
from racing.contest import Contest


def wide_pieces() -> Contest:
    """Seconds to a training loss of 0.074, and of 0.01."""
    return ablation("mnist/wide.py", batch_size=512, seconds=5.0, targets=(0.074, 0.01))
