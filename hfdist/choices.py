"""Choices that are files: what a setting may say are the names in a package.

A file of such a package defines one function, of its own name. A new choice is one new
file, and nothing to register.
"""

import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

from hfdist.checks import check_choice

Rule = TypeVar("Rule", bound=Callable)


def choices(package: ModuleType) -> tuple[str, ...]:
    """The names of a package's files, in the order of the alphabet."""
    return tuple(sorted(file.name for file in pkgutil.iter_modules(package.__path__)))


def chosen(setting: str, name: str, package: ModuleType) -> Any:
    """The function of this name, from its file.

    Raises UsageError for a name that is no file of the package: none is imported then.
    """
    check_choice(setting, name, choices(package))
    return getattr(importlib.import_module(f"{package.__name__}.{name}"), name)


def looking_back(rule: Rule) -> Rule:
    """Mark a step or damping rule as one for which the previous step is kept."""
    rule.looks_back = True  # pyright: ignore[reportFunctionMemberAccess]
    return rule


def looks_back(rule: Callable) -> bool:
    """Whether a rule is marked so."""
    return getattr(rule, "looks_back", False)
