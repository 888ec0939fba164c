"""The README says what is true: its loop runs, its paths exist."""

import doctest
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_the_loop_runs_as_written():
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert result.attempted >= 10
    assert result.failed == 0


def test_the_files_it_names_exist():
    paths = set(re.findall(r"\b(?:configs|hfdist|tools|launch)/[\w/]+\.py", TEXT))
    assert len(paths) >= 10
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_the_targets_it_names_exist():
    targets = set(re.findall(r"^(?:.*`)?make (\w+)", TEXT, re.M))
    makefile = (ROOT / "Makefile").read_text()
    assert {"train", "test", "setup"} <= targets
    assert not [t for t in targets if not re.search(rf"^{t}:", makefile, re.M)]
