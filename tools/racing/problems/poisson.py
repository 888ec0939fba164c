"""Poisson's equation of configs/physics/poisson.py, all points every step."""

from racing.contest import Contest, against_adam


def poisson() -> Contest:
    """Training loss after 20 s."""
    return against_adam("physics/poisson.py", seconds=20.0)
