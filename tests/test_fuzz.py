"""Odd inputs, by seed: no traceback, no hang, exit codes as promised.

A seed's input is made by tests/fuzz_inputs.py. Most run in a worker, one after the
other; some are processes of their own, as a user's are.
"""

import json
import os
import select
import signal
import subprocess
import sys

import pytest

import fuzz_inputs
from together import ROOT, clean_environment

SEEDS = [*range(300), 536, 586, 664, 707]  # these four found something later
PATIENCE = 120  # seconds; the slowest take 10 on an idle machine
CODES = {"hfdist": {0, 2, 3}, "plot": {0, 2}, "spectrum": {0, 2}, "from_json": {0, 2}}
PROGRAMS = {
    "hfdist": ["-m", "hfdist"],
    "plot": [ROOT / "tools/plot.py"],
    "spectrum": [ROOT / "tools/spectrum.py"],
}


class Worker:
    """A process of tests/fuzz_worker.py, replaced if it hangs or dies."""

    def __init__(self, folder):
        self._log = folder / "worker.log"
        self._env = {
            **clean_environment(),
            "HOME": str(folder),
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(
                str(ROOT / d) for d in ("", "tests", "tools")
            ),
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
        }
        self._start()

    def _start(self):
        self._process = subprocess.Popen(
            [sys.executable, ROOT / "tests/fuzz_worker.py"],
            env=self._env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            text=True,
        )

    def run(self, argv, cwd):
        """How a command ends; of a hang, or of a death, what Python says of it."""
        sent = json.dumps({"argv": list(map(str, argv)), "cwd": str(cwd)})
        print(sent, file=self._process.stdin, flush=True)
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        answer = self._process.stdout.readline() if ready else ""
        if answer:
            return json.loads(answer)
        self._process.send_signal(signal.SIGABRT)
        self._process.wait()
        self._start()
        how = "died" if ready else f"hung for {PATIENCE} s"
        return {"code": None, "out": "", "err": how, "raised": self._log.read_text()}

    def run_alone(self, argv, cwd):
        """How a process of its own ends."""
        done = subprocess.run(
            [sys.executable, *map(str, PROGRAMS[argv[0]]), *map(str, argv[1:])],
            cwd=cwd,
            env=self._env,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
        )
        return {"code": done.returncode, "out": done.stdout, "err": done.stderr}

    def close(self):
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    one = Worker(tmp_path_factory.mktemp("worker"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def base(worker, tmp_path_factory):
    """Sound things to damage: data and two runs."""
    folder = tmp_path_factory.mktemp("sound")
    made = fuzz_inputs.Base(folder)
    for argv in made.commands():
        ended = worker.run(argv, folder)
        assert ended["code"] == 0, ended
    return made


def fault(program, ended):
    """What is wrong with how a command ended, or ''."""
    if ended.get("raised"):
        return "raised"
    if ended["code"] not in CODES[program]:
        return f"exit code {ended['code']}"
    if "Traceback" in ended["out"] + ended["err"]:
        return "traceback"
    if ended["code"] == 2:
        return _not_one_message(program, ended["err"])
    return ""


def _not_one_message(program, err):
    """Of a mistake one message is said; argparse and tyro draw theirs in lines."""
    if "usage: " in err or "╭" in err:
        return ""
    begun = [line for line in err.splitlines() if line.startswith(f"{program}: ")]
    # Beside it: a checkpoint that was passed over, and how far spectrum has come.
    said = [line for line in begun if not line.endswith((" instead", " …"))]
    if len(said) != 1:
        return f"{len(said)} messages"
    return "too long" if len(err) > 2000 else ""


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_an_odd_input_ends_as_promised(seed, worker, base, tmp_path):
    argv = fuzz_inputs.make(seed, tmp_path, base)
    alone = seed % 27 == 0 and argv[0] in PROGRAMS  # 27: some of every kind
    ended = (worker.run_alone if alone else worker.run)(argv, tmp_path / "cwd")
    wrong = fault(argv[0], ended)
    assert not wrong, "\n".join(
        [wrong, f"seed {seed}: {argv}", ended.get("raised") or "", ended["err"][-3000:]]
    )
