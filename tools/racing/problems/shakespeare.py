"""The character transformer of configs/text/shakespeare.py."""

from racing.contest import Contest, against_adam


def shakespeare() -> Contest:
    """Training loss after 40 s."""
    return against_adam("text/shakespeare.py", seconds=40.0)
