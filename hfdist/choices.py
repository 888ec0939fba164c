"""Choices that are files: what a setting may say are the names in a package.

A file of such a package defines one function, of its own name. A new choice is one new
file, and nothing to register.
"""

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from hfdist.checks import check_choice


def choices(package: ModuleType) -> tuple[str, ...]:
    """The names of a package's files, in the order of the alphabet."""
    return tuple(sorted(file.name for file in pkgutil.iter_modules(package.__path__)))


def chosen(setting: str, name: str, package: ModuleType) -> Any:
    """The function of this name, from its file.

    Raises UsageError for a name that is no file of the package: none is imported then.
    """
    check_choice(setting, name, choices(package))
    return getattr(importlib.import_module(f"{package.__name__}.{name}"), name)
