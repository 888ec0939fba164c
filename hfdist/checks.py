"""Checks of settings, made when the object that holds them is."""

import difflib
import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jax.core import Tracer

from hfdist.errors import UsageError


def known(value: Any) -> bool:
    """Whether a number is known now: neither traced by JAX nor an optax schedule."""
    return not (callable(value) or isinstance(value, Tracer))


def check_positive(name: str, value: Any, *, or_zero: bool = False) -> None:
    """Raise UsageError unless value is finite and > 0 (≥ 0 with or_zero).

    What is known only later passes.
    """
    if known(value) and not (
        math.isfinite(value) and (value > 0 or (or_zero and value == 0))
    ):
        bound = "0 or more" if or_zero else "more than 0"
        raise UsageError(f"{name} is {value}: use a number that is {bound}")


def check_choices(settings: Any) -> None:
    """Raise UsageError for a field declared a Literal that holds none of its values."""
    for name, hint in get_type_hints(type(settings)).items():
        if get_origin(hint) is Literal:
            check_choice(name, getattr(settings, name), get_args(hint))


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise UsageError unless value is one of the choices; suggests the nearest."""
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f" (perhaps {near[0]!r})" if near else ""
    raise UsageError(f"{name} is {value!r}: use one of {', '.join(choices)}{hint}")
