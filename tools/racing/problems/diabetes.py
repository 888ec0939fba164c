"""The table of configs/table/diabetes.py, the whole of it every step."""

from racing.contest import Contest, against_adam


def diabetes() -> Contest:
    """Training loss after 2 s."""
    return against_adam("table/diabetes.py", seconds=2.0)
