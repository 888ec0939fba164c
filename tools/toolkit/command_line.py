"""The command line that the tools have in common.

A tool is a parser, a function from its arguments to what there is to say, and one that
prints that for people.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from typing import Any

from hfdist.errors import UsageError

DONE, USAGE, STOPPED = 0, 2, 75


class Stopped(Exception):
    """A signal stopped the work, which was saved; the message says how to go on."""


def parser(description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser that abbreviates no option and has --json."""
    made = argparse.ArgumentParser(
        description=description, epilog=epilog, allow_abbrev=False
    )
    made.add_argument("--json", action="store_true", help="print JSON, for programs")
    return made


def run(
    name: str,
    arguments: argparse.Namespace,
    report: Callable[[argparse.Namespace], Any],
    show: Callable[[Any], None],
    code: Callable[[Any], int] = lambda said: DONE,
) -> int:
    """Say what there is to say; exit code 2 for a caller's mistake, 75 if stopped.

    What is said may have named tuples, which JSON shows as objects.
    """
    try:
        said = report(arguments)
    except (UsageError, Stopped) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return STOPPED if isinstance(error, Stopped) else USAGE
    if arguments.json:
        print(to_json(said))
    else:
        show(said)
    return code(said)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text in which non-finite numbers are strings, as in metrics.jsonl."""

    def valid(v):
        if hasattr(v, "_asdict"):
            v = v._asdict()
        if isinstance(v, dict):
            return {key: valid(item) for key, item in v.items()}
        if isinstance(v, list | tuple):
            return [valid(item) for item in v]
        return str(v) if isinstance(v, float) and not math.isfinite(v) else v

    return json.dumps(valid(value), indent=indent, default=str)
