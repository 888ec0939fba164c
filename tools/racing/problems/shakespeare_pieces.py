"""The character transformer, one piece of HessianFree() changed at a time."""

from racing.ablation import ablation
from racing.contest import Contest


def shakespeare_pieces() -> Contest:
    """Training loss after 30 s."""
    return ablation("text/shakespeare.py", batch_size=12, seconds=30.0)
