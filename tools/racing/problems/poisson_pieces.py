"""Poisson's equation, all points every step: one piece of CG changed at a time."""

from racing.ablation import WHOLE, WHOLE_PIECES, ablation
from racing.contest import Contest


def poisson_pieces() -> Contest:
    """Seconds to a training loss of 1e-5, 1e-6 and 1e-7."""
    return ablation(
        "physics/poisson.py",
        batch_size=1020,
        seconds=15.0,
        targets=(1e-5, 1e-6, 1e-7),
        base=WHOLE,
        pieces=WHOLE_PIECES,
    )
