"""The character transformer, one piece of HessianFree() changed at a time."""

from racing.ablation import ablation
from racing.contest import Contest


def shakespeare_pieces() -> Contest:
    """Bits a character of the validation text after 30 s."""
    return ablation("text/shakespeare.py", 12, 30.0, "bits_per_character")
