"""Checks of settings, made when the object that holds them is.

A field's declared type says what it may hold, its bounds among it:

    epochs: Count = 7
    damping: NonNegative = 4.0
    seed: Annotated[int, Whole(0, 2**32 - 1)] = 0
"""

import difflib
import math
import os
import types
from dataclasses import dataclass, fields
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import jax
import numpy as np
from jax.core import Tracer

from hfdist.errors import UsageError

MOST = 2**31 - 1  # whole numbers reach JAX as int32
# Of the numbers that float32 holds in full precision.
SMALL = float(np.finfo(np.float32).smallest_normal)
LARGE = float(np.finfo(np.float32).max)
LONGEST = 100  # characters of a value in a message


class Whole(NamedTuple):
    """Which whole numbers an int may be: metadata of its declared type."""

    least: int = -MOST
    most: int = MOST

    def fitted(self, name: str, value: Any) -> int:
        """The value as an int; 3.0 is one."""
        is_whole = isinstance(value, float) and value.is_integer()
        if not (isinstance(value, int) or is_whole) or isinstance(value, bool):
            raise refusal(name, value, "a whole number")
        if value < self.least:
            raise refusal(name, value, f"at least {self.least}")
        if value > self.most:
            raise refusal(name, value, f"at most {self.most}")
        return int(value)


class Real(NamedTuple):
    """Which numbers a float may be, of those in float32's normal range and 0."""

    least: float = -math.inf
    above: bool = False  # more than the least, not the least itself
    below: float = math.inf
    most: float = math.inf

    def fitted(self, name: str, value: Any) -> float:
        """The value as a float; an int is one."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise refusal(name, value, self._words())
        least_is_in = value > self.least if self.above else value >= self.least
        # False for NaN too.
        most_is_in = value <= self.most and value < self.below
        if not (least_is_in and most_is_in and abs(value) < math.inf):
            raise refusal(name, value, self._words())
        if value and not SMALL <= abs(value) <= LARGE:
            span = f"from {SMALL:.2g} to {LARGE:.2g}"
            raise refusal(name, value, f"{self._words()}, and {span} (float32)")
        return float(value)

    def _words(self) -> str:
        if self.least == -math.inf:
            return "a number"
        bound = f"more than {self.least}" if self.above else f"{self.least} or more"
        bound += f" and less than {self.below}" if self.below < math.inf else ""
        bound += f" and at most {self.most}" if self.most < math.inf else ""
        return f"a number that is {bound}"


Count = Annotated[int, Whole(1)]
NonNegative = Annotated[float, Real(0)]
Positive = Annotated[float, Real(0, above=True)]
Fraction = Annotated[float, Real(0, below=1)]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A frozen dataclass whose fields are checked by their declared types.

    What loses nothing is turned into that type: 3.0 into 3, a NumPy number into
    Python's, a str into a Path, a list into a tuple. Raises UsageError for the rest.
    """

    defined: ClassVar[dict[str, type["Settings"]]] = {}
    """The newest class of each name, as class_name has it."""
    scheduled: ClassVar[bool] = False
    """Whether a float may be known only later: an optax schedule, or traced by JAX."""

    def __init_subclass__(cls, **arguments: Any):
        super().__init_subclass__(**arguments)
        Settings.defined[class_name(cls)] = cls

    def __post_init__(self):
        hints = get_type_hints(type(self), include_extras=True)
        for field in fields(self):
            name, hint, value = field.name, hints[field.name], getattr(self, field.name)
            if self.scheduled and _bare(hint)[0] is float and not known(value):
                continue
            value = fitted(f"{type(self).__name__}.{name}", value, hint)
            object.__setattr__(self, name, value)


def class_name(cls: type) -> str:
    """Where a class is from: module:qualname."""
    return f"{cls.__module__}:{cls.__qualname__}"


def fitted(name: str, value: Any, hint: Any) -> Any:
    """The value as its declared type has it.

    Raises UsageError if it does not fit; of a type not known here every value does.
    """
    kind, bounds = _bare(hint)
    plain = _plain(value)
    if isinstance(bounds, Whole | Real):
        return bounds.fitted(name, plain)
    if kind is Path:
        return _path(name, plain)
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        check_choice(name, plain, choices)
        return choices[choices.index(plain)]
    if get_origin(kind) is tuple:
        return _tuple(name, plain, get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        return _optional(name, value, get_args(kind))
    if kind in (bool, str) or (isinstance(kind, type) and issubclass(kind, Settings)):
        return _instance(name, plain, kind)
    return value


def _bare(hint: Any) -> tuple[Any, Any]:
    """A declared type without its metadata, and the bounds of its numbers or None."""
    kind, *metadata = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    bounds = {int: Whole, float: Real}.get(kind) if isinstance(kind, type) else None
    if bounds is None:
        return kind, None
    return kind, next((m for m in metadata if isinstance(m, bounds)), bounds())


def _plain(value: Any) -> Any:
    """An array of NumPy's or JAX's as Python's numbers and lists."""
    is_array = isinstance(value, np.generic | np.ndarray | jax.Array)
    return value.tolist() if is_array and known(value) else value


def _instance(name: str, value: Any, cls: type) -> Any:
    if isinstance(value, cls):
        return value
    words = {bool: "True or False", str: "text"}.get(cls)
    if words is None and isinstance(value, type) and issubclass(value, cls):
        words = f"an instance, {value.__name__}(...)"
    raise refusal(name, value, words or f"an instance of a kind of {cls.__name__}")


def _path(name: str, value: Any) -> Path:
    try:
        path = Path(value)
        if b"\0" not in os.fsencode(path):
            return path
    except (TypeError, ValueError):  # not text, or text with half a character
        pass
    raise refusal(name, value, "a path, of whole characters without NUL")


def _tuple(name: str, value: Any, hints: tuple[Any, ...]) -> tuple:
    if not isinstance(value, list | tuple):
        raise refusal(name, value, f"a tuple, ({shown(value)},) if of this alone")
    if hints[-1:] == (...,):
        hints = hints[:1] * len(value)
    if len(value) != len(hints):
        raise refusal(name, value, f"a tuple of {len(hints)}")
    pairs = enumerate(zip(value, hints, strict=True))
    return tuple(fitted(f"{name}[{i}]", item, hint) for i, (item, hint) in pairs)


def _optional(name: str, value: Any, hints: tuple[Any, ...]) -> Any:
    """Of `X | None`; other unions are not known here."""
    others = [hint for hint in hints if hint is not types.NoneType]
    if len(others) != 1 or value is None:
        return value
    return fitted(name, value, others[0])


def known(value: Any) -> bool:
    """Whether a number is known now: neither traced by JAX nor an optax schedule."""
    return isinstance(value, type) or not (callable(value) or isinstance(value, Tracer))


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise UsageError unless value is one of the choices; suggests the nearest."""
    if value in choices:
        return
    words = [str(choice) for choice in choices]
    near = difflib.get_close_matches(shown(value).strip("'"), words, n=1)
    hint = f" (perhaps {near[0]!r})" if near else ""
    raise refusal(name, value, f"one of {', '.join(words)}{hint}")


def refusal(name: str, value: Any, remedy: str) -> UsageError:
    """The error of a setting that does not fit, and what to use instead."""
    return UsageError(f"{name} is {shown(value)}: use {remedy}")


def shown(value: Any) -> str:
    """A value in a message: on one line, and not too long."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # of too many digits, or too deep
        return f"a very long {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
