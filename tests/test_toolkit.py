"""What the tools have in common: their command line, and the table printer."""

import json
import math
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import pytest

from hfdist.errors import UsageError
from hfdist.runs.progress import print_table
from toolkit import command_line

TOOLS = Path(__file__).parent.parent / "tools"


class Figure(NamedTuple):
    name: str
    value: float


def run(report, as_json=True, **options):
    said = []
    arguments = Namespace(json=as_json)
    return command_line.run("tool", arguments, report, said.append, **options), said


def test_json_has_no_bare_nan_and_named_tuples_are_objects(capsys):
    code, shown = run(lambda _: [Figure("a", math.nan), {"path": Path("x"), "n": 3}])
    assert (code, shown) == (0, [])
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    expected = [{"name": "a", "value": "nan"}, {"path": "x", "n": 3}]
    assert json.loads(out) == expected


def test_people_are_shown_what_is_said_and_the_code_is_of_it(capsys):
    code, shown = run(lambda _: 3, as_json=False, code=lambda said: said + 1)
    assert (code, shown) == (4, [3])
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError("a mistake"), 2), (command_line.Stopped("so"), 75)]
)
def test_a_mistake_and_a_stop_are_one_line(error, code, capsys):
    def report(_):
        raise error

    assert run(report) == (code, [])
    said = capsys.readouterr()
    assert said.err == f"tool: {error}\n"
    assert not said.out


def test_no_package_of_the_tools_hides_a_command_or_a_folder_of_runs():
    packages = {path.parent.name for path in TOOLS.glob("*/__init__.py")}
    commands = {path.stem for path in TOOLS.glob("*.py")}
    known = {"bench", "comms", "gpu", "plot", "reproduce", "solution", "spectrum"}
    assert commands == known
    assert packages
    assert not packages & (commands | {"runs", "hfdist", "tests", "launch", "configs"})


def test_a_table_of_any_text_and_numbers(capsys):
    rows = [("[/b]", 1234567, 1234.5, True), ("x", None, 0.123456, math.nan)]
    print_table(rows, ("run", "n", "[i]", "ok"), "of :x: [/]", justify="right")
    out = capsys.readouterr().out
    assert out.startswith("of :x: [/]")
    assert "│ [/b] │ 1,234,567 │  1,234 │ True │" in out
    assert "│ x    │         - │ 0.1235 │  nan │" in out


def test_a_table_wider_than_a_screen_loses_nothing(capsys):
    names = [f"after {10**i} seconds" for i in range(9)]
    print_table([[1 / 3] * 9], names)
    head, figures = capsys.readouterr().out.splitlines()[1:4:2]
    assert all(name in head for name in names)
    assert figures.count("0.3333") == 9
