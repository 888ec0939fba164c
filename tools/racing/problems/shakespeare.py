"""The character transformer of configs/text/shakespeare.py."""

from racing.contest import Contest, against_adam


def shakespeare() -> Contest:
    """Bits a character of the validation text after 40 s."""
    return against_adam("text/shakespeare.py", 40.0, "bits_per_character")
