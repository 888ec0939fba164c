"""launch/local.py around programs that stand in for hfdist, and end at once."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import together
from together import ROOT, children_of, clean_environment

LAUNCHER = ROOT / "launch" / "local.py"
wait_for = partial(together.wait_for, seconds=20)


def start(folder, program, *options, stdout=subprocess.PIPE, before=":"):
    """The launcher, where `python -m hfdist` is the program; before it, shell code."""
    (folder / "hfdist").mkdir()
    (folder / "hfdist" / "__init__.py").touch()
    (folder / "hfdist" / "__main__.py").write_text(program)
    command = [sys.executable, LAUNCHER, *options, "--", "train"]
    return subprocess.Popen(
        ["sh", "-c", f'{before}; exec "$@"', "sh", *command],
        cwd=folder,
        env=clean_environment(),
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


# More lines than a pipe holds, and a file at the end; process 1 fails then.
TALKS = """
import os
from pathlib import Path
me = os.environ["HFDIST_PROCESS_ID"]
for line in range(20_000):
    print("line", line, flush=True)
Path(f"done{me}").touch()
while not all(Path(f"done{i}").exists() for i in (0, 1)):
    pass
raise SystemExit(3 * (me == "1"))
"""


@pytest.mark.parametrize("lost", ["a closed pipe", "a full disk"])
def test_output_that_nobody_takes_ends_nothing(tmp_path, lost):
    options = ("--processes", "2")
    if lost == "a closed pipe":
        launcher = start(tmp_path, TALKS, *options)
        assert b" line " in launcher.stdout.readline()
        launcher.stdout.close()
    else:
        with Path("/dev/full").open("w") as full:
            launcher = start(tmp_path, TALKS, *options, stdout=full)
    try:
        assert launcher.wait(timeout=30) == 3
    finally:
        launcher.kill()
    assert launcher.stderr.read() == b""


# Ends with 9 when a signal comes, with 0 when the file `go` does.
LISTENS = """
import os, signal, time
from pathlib import Path
for number in (signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, lambda *_: os._exit(9))
Path("ready" + os.environ["HFDIST_PROCESS_ID"]).touch()
while not Path("go").exists():
    time.sleep(0.02)
"""


def test_a_hangup_that_is_ignored_is_not_passed_on(tmp_path):
    launcher = start(tmp_path, LISTENS, "--processes", "1", before="trap '' HUP")
    wait_for((tmp_path / "ready0").exists)
    launcher.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    (tmp_path / "go").touch()
    assert launcher.wait(timeout=10) == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on(tmp_path, number):
    launcher = start(tmp_path, LISTENS, "--processes", "1")
    wait_for((tmp_path / "ready0").exists)
    launcher.send_signal(number)
    assert launcher.wait(timeout=10) == 9


SLEEPS = """
import os, time
from pathlib import Path
Path("ready" + os.environ["HFDIST_PROCESS_ID"]).touch()
time.sleep(60)
"""


def test_the_first_to_fail_gives_the_code_and_ends_the_others(tmp_path):
    launcher = start(tmp_path, SLEEPS, "--processes", "2")
    wait_for(lambda: len(list(tmp_path.glob("ready*"))) == 2)
    children = children_of(launcher)
    assert len(children) == 2
    os.kill(children[1], signal.SIGKILL)
    output, _ = launcher.communicate(timeout=20)  # the first has 5 s
    assert launcher.returncode == 128 + signal.SIGKILL
    assert b"launch: process 1 ended with SIGKILL" in output
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def test_processes_that_cannot_all_start_leave_none_behind(tmp_path):
    launcher = start(tmp_path, SLEEPS, "--processes", "20", before="ulimit -n 12")
    _, errors = launcher.communicate(timeout=20)  # once no child has the pipe
    assert launcher.returncode == 2
    assert errors.startswith(b"launch/local.py: 20 processes cannot be started")
    assert errors.count(b"\n") == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--processes", "0"),
        ("--processes", "-1"),
        ("--processes", "²"),
        ("--processes", "١"),
        ("--processes", "1000000"),
        ("--processes", "9" * 5000),
        ("--port", "0"),
        ("--port", "-1"),
        ("--port", "99999"),
        ("--max-restarts", "-1"),
        ("--max-restarts", "1.5"),
    ],
)
def test_numbers_out_of_range(monkeypatch, capsys, option, value):
    spec = importlib.util.spec_from_file_location("local", LAUNCHER)
    local = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(local)
    arguments = ["--processes", "1", option, value, "--", "train"]
    monkeypatch.setattr(sys, "argv", ["local.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        local.main()
    assert f"argument {option}: " in capsys.readouterr().err
