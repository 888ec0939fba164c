"""What a part of the check is: a file beside this one that defines `measure`.

    measure(work) -> rows and sentences, each as soon as it is known

A row is a dict of figures by their names, and fails the part by "ok": False; a sentence
is text. What was said before a crash stays in the report.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
Said = Iterator[Row | str]
ROOT = Path(__file__).parents[2]
NAME = "said.jsonl"  # in the folder of a part, a line for all that it says


class Work(NamedTuple):
    """What a part is given."""

    folder: Path  # to write in; removed when the part has ended
    quick: bool  # small: it shows that everything works, and nothing about the device
    deadline: float  # of time.monotonic(), when the part is ended


class Skipped(Exception):
    """The part is not for this machine; the message says why."""
