"""The pages of docs/ say what is true: their blocks run, what they name exists.

The blocks of a page run in order, in a copy of the repository, as a user would:

    python    a script, a doctest where it has prompts, or, after a line that is
              `some/path`: alone, what that file holds
    diff      applied to the copy
    console   a bash script of the lines after "$ "; the other lines are what they
              print, with ... for what varies from run to run

A block below a comment <!-- not run: reason --> is passed over.
"""

import doctest
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from together import ROOT, clean_environment

DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
QUICK = {"results.md", "scorecard.md"}
NOT_RUN = {
    ("distributed.md", "needs a cluster"),
    ("distributed.md", "needs `make setup-gpu-compile`"),
    ("results.md", "takes minutes to hours"),
    ("results.md", "needs a machine with GPUs"),
}
TESTS = "".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
COPIED = ("configs", "docs", "hfdist", "launch", "results", "tests", "tools")

BLOCK = re.compile(
    r"(?:^`([\w./]+)`:\n\n|^<!-- not run: ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\[[^\]]+\]\(([^)#]*)(?:#([^)]*))?\)")
CODE = re.compile(r"`([^`\n]+)`")


class Block(NamedTuple):
    """A fenced block of a page."""

    path: str  # of the file that it is, or ""
    not_run: str  # why, or ""
    language: str
    text: str


def blocks(page):
    return [Block(*found) for found in BLOCK.findall((DOCS / page).read_text())]


def prose(page):
    return BLOCK.sub("", (DOCS / page).read_text())


@pytest.fixture
def copy(tmp_path):
    """A checkout to try things in."""
    for name in COPIED:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(command, folder, text=None):
    """What a command prints, which must succeed, as typed in an activated .venv."""
    paths = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**clean_environment(), "PYTHONPATH": str(folder), "PATH": paths},
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}"
    return done.stdout


def try_python(block, folder):
    if block.path:
        (folder / block.path).write_text(block.text)
    elif block.text.startswith(">>> "):
        (folder / "block.txt").write_text(block.text)
        run([sys.executable, "-m", "doctest", "block.txt"], folder)
    else:
        run([sys.executable, "-"], folder, block.text)


def try_diff(block, folder):
    run(["git", "apply", "-"], folder, block.text)


def try_console(block, folder):
    typed, shown = [], []
    for line in block.text.splitlines():
        (typed if line.startswith("$ ") else shown).append(line.removeprefix("$ "))
    assert typed, f"no command in {block.text}"
    printed = run(["bash", "-e"], folder, "\n".join(typed) + "\n")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    want = "\n".join(shown)
    right = doctest.OutputChecker().check_output(want, printed, flags)
    assert right or not shown, f"shown:\n{want}\nprinted:\n{printed}"


TRY = {"python": try_python, "diff": try_diff, "console": try_console}


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=() if p in QUICK else pytest.mark.slow) for p in PAGES],
)
def test_the_blocks_of_a_page_do_what_they_show(page, copy):
    for block in blocks(page):
        if not block.not_run:
            TRY[block.language](block, copy)


def test_what_is_not_run_is_known():
    found = {(page, b.not_run) for page in PAGES for b in blocks(page) if b.not_run}
    assert found == NOT_RUN


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_runs(page):
    assert {block.language for block in blocks(page)} <= set(TRY)
    # None is hidden from the pattern above.
    assert (DOCS / page).read_text().count("```") == 2 * len(blocks(page))


def anchors(text):
    """The names that GitHub gives to headings."""
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    kept = [re.sub(r"[^\w\- ]", "", head.lower()) for head in heads]
    return {head.replace(" ", "-") for head in kept}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for path, anchor in LINK.findall(prose(page)):
        if path.startswith("http"):
            continue
        target = DOCS / (path or page)
        assert target.exists(), f"{page} links to {path}"
        assert not anchor or anchor in anchors(target.read_text()), f"{path}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_the_files_and_names_that_prose_names_exist(page):
    made = {block.path for block in blocks(page)}
    for name in CODE.findall(prose(page)):
        if re.fullmatch(rf"({'|'.join(COPIED)})/[\w./-]*", name):
            assert (ROOT / name).exists() or name in made, f"{page} names {name}"
        elif re.fullmatch(r"hfdist(\.\w+)+", name):
            assert exists(name), f"{page} names {name}"
        elif re.fullmatch(r"test_\w+", name):
            assert f"def {name}(" in TESTS, f"{page} names {name}"


def exists(dotted):
    """Whether a module, or something in one, has this name."""
    try:
        pkgutil.resolve_name(dotted)
    except (ImportError, AttributeError):
        return False
    return True


def test_a_page_that_lies_is_found(copy):
    try_console(Block("", "", "console", "$ echo 12 steps\n... steps\n"), copy)
    wrong = [
        Block("", "", "console", "$ echo 12 steps\n13 steps\n"),
        Block("", "", "console", "$ false\n"),
        Block("", "", "python", ">>> 1 + 1\n3\n"),
        Block("", "", "python", "import hfdist.nothing\n"),
        Block("", "", "diff", "--- a/README\n+++ b/README\n@@ -1 +1 @@\n-a\n+b\n"),
    ]
    for block in wrong:
        with pytest.raises(AssertionError):
            TRY[block.language](block, copy)
    assert not exists("hfdist.nothing.at_all")
