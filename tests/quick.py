"""Which of a test's cases belong to the quick tests."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mostly_slow(values: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Values, or tuples of them, for parametrize, all but the quick ones slow."""
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else [value]),
            marks=[] if value in quick else [pytest.mark.slow],
        )
        for value in values
    ]
