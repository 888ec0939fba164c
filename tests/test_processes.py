"""Runs of several real processes: they train alike, and they end together."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import idx_files
from together import ROOT, children_of, clean_environment, free_port, train_losses

HF = "configs/paper/hf_gauss_newton.py"
ENV = clean_environment()


def start(process, arguments, port, processes=2, **env):
    """One process of a run, as a launcher would start it."""
    return subprocess.Popen(
        [sys.executable, "-m", "hfdist", *map(str, arguments)],
        cwd=ROOT,
        env={
            **ENV,
            "HFDIST_COORDINATOR": f"localhost:{port}",
            "HFDIST_NUM_PROCESSES": str(processes),
            "HFDIST_PROCESS_ID": str(process),
            **env,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ends(processes, within):
    """(exit codes, outputs) of processes, none of which may outlast the deadline."""
    deadline = time.monotonic() + within
    try:
        outputs = [
            p.communicate(timeout=max(0.1, deadline - time.monotonic()))[0]
            for p in processes
        ]
    finally:
        for p in processes:
            with contextlib.suppress(ProcessLookupError):
                p.kill()
    return [p.returncode for p in processes], outputs


def wait_for_lines(run_dir, count):
    deadline = time.monotonic() + 60
    path = run_dir / "metrics.jsonl"
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < deadline, "the run did not start"
        time.sleep(0.1)


def local_command(arguments, processes=2):
    launcher = [sys.executable, "launch/local.py", "--processes", str(processes)]
    return [*launcher, "--", *map(str, arguments)]


def local(*arguments, processes=2):
    """launch/local.py, to its end."""
    return subprocess.run(
        local_command(arguments, processes),
        cwd=ROOT,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return idx_files.make_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture
def long_run(data, tmp_path):
    """Arguments of a run that no test waits for."""
    settings = f"--data.dir {data} --data.classes 3 --batch-size 16 --epochs 100000"
    return ["train", HF, *settings.split(), "--run-dir", tmp_path / "run"]


def test_a_killed_worker_is_named_and_ends_the_run(long_run, tmp_path):
    port = free_port()
    pair = [start(i, long_run, port) for i in (0, 1)]
    wait_for_lines(tmp_path / "run", 50)
    pair[1].kill()
    codes, outputs = ends(pair, within=20)
    assert codes == [1, -signal.SIGKILL]
    assert f"process 1 on {socket.gethostname()} gave no sign of life" in outputs[0]
    assert "Traceback" not in outputs[0]


def test_a_killed_coordinator_ends_the_run(long_run, tmp_path):
    port = free_port()
    pair = [start(i, long_run, port) for i in (0, 1)]
    wait_for_lines(tmp_path / "run", 50)
    pair[0].kill()
    codes, outputs = ends(pair, within=20)
    # JAX may be first to notice, and aborts with a message of its own.
    assert codes[1] in (1, -signal.SIGABRT)
    assert re.search("process 0 at localhost.* is gone|leader task", outputs[1])


FAULTY = """
import os
from pathlib import Path
import numpy as np
from hfdist import SGD
from hfdist.config import Config
from hfdist.data.idx import IDX, Examples

class Reads:
    def __init__(self, array):
        self.array, self.count, self.shape = array, 0, array.shape
    def __getitem__(self, rows):
        self.count += 1
        if self.count == 20 and os.environ["HFDIST_PROCESS_ID"] == "WHERE":
            raise RuntimeError("the disk is on fire")
        return self.array[rows]

class Faulty(IDX):
    def load(self, split):
        examples = super().load(split)
        return Examples(Reads(examples.inputs), examples.labels)

config = Config(method=SGD(), data=Faulty(dir=Path("DATA"), classes=3), batch_size=16,
                epochs=100000)
"""


@pytest.mark.parametrize("where", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_an_exception_in_one_process_ends_all(data, tmp_path, where):
    text = FAULTY.replace("DATA", str(data)).replace("WHERE", str(where))
    (tmp_path / "config.py").write_text(text)
    arguments = ["train", tmp_path / "config.py", "--run-dir", tmp_path / "run"]
    port = free_port()
    codes, outputs = ends([start(i, arguments, port) for i in (0, 1)], within=40)
    assert codes == [1, 1]
    assert "Traceback" in outputs[where]
    assert "on fire" in outputs[where]
    told = f"hfdist: process {where}: RuntimeError: the disk is on fire"
    assert told in outputs[1 - where]
    assert "Traceback" not in outputs[1 - where]


@pytest.mark.slow
def test_a_wrong_coordinator_is_reported_by_both(long_run):
    began = time.monotonic()
    right = start(0, long_run, free_port())
    wrong = start(1, long_run, port := free_port())
    codes, outputs = ends([right, wrong], within=25)
    assert codes == [2, 2]
    assert "the 2 processes did not all meet at localhost:" in outputs[0]
    assert f"process 0 does not answer at localhost:{port} after 15 s" in outputs[1]
    assert "Traceback" not in "".join(outputs)
    assert time.monotonic() - began < 25  # 20 s, and the start of Python


def test_a_port_already_taken_is_reported(long_run):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        codes, outputs = ends([start(0, long_run, port)], within=15)
    assert codes == [2]
    assert f"process 0 cannot listen on port {port} (Address already in" in outputs[0]


def test_different_configs_are_refused_by_both(long_run, tmp_path):
    port = free_port()
    other = [*long_run, "--method.damping", "2"]
    pair = [start(0, long_run, port), start(1, other, port)]
    codes, outputs = ends(pair, within=20)
    assert codes == [2, 2]
    for output in outputs:
        assert "process 1 on" in output
        assert "was not started like process 0: method.damping is 2.0 there" in output
    assert not (tmp_path / "run").exists()


def test_different_package_versions_are_refused(long_run, tmp_path):
    found = tmp_path / "hfdist-9.9.dist-info"
    found.mkdir()
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: hfdist\nVersion: 9.9")
    port = free_port()
    newer = start(1, long_run, port, PYTHONPATH=str(tmp_path))
    codes, outputs = ends([start(0, long_run, port), newer], within=20)
    assert codes == [2, 2]
    assert "version of hfdist is 9.9 there" in outputs[0]


def test_a_batch_that_the_processes_cannot_share_is_refused(long_run, tmp_path):
    done = local(*long_run, "--batch-size", "15")
    assert done.returncode == 2
    assert "15 cannot be split evenly over 2 devices in 2 process(es)" in done.stdout
    assert not (tmp_path / "run").exists()


def test_the_launcher_returns_the_code_of_the_first_to_fail(long_run, tmp_path):
    launcher = start_local(long_run)
    wait_for_lines(tmp_path / "run", 50)
    children = children_of(launcher)
    assert len(children) == 2
    os.kill(children[1], signal.SIGKILL)
    codes, outputs = ends([launcher], within=20)
    assert codes == [128 + signal.SIGKILL]
    assert "launch: process 1 ended with SIGKILL" in outputs[0]
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_the_launcher_passes_signals_on(long_run, tmp_path, number):
    launcher = start_local(long_run)
    wait_for_lines(tmp_path / "run", 50)
    children = children_of(launcher)
    launcher.send_signal(number)
    codes, _ = ends([launcher], within=20)
    assert codes == [75]  # saved
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def start_local(arguments):
    return subprocess.Popen(
        local_command(arguments),
        cwd=ROOT,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def compare(tmp_path, config, settings, tolerance, layouts):
    """The training losses of each layout against those of one device."""
    arguments = ["train", f"configs/paper/{config}.py", *settings.split()]
    local(*arguments, "--run-dir", tmp_path / "one", processes=1)
    expected = train_losses(tmp_path / "one")
    for processes, devices in layouts:
        run_dir = tmp_path / f"{processes}x{devices}"
        layout = ["--devices", devices, "--run-dir", run_dir]
        done = local(*arguments, *layout, processes=processes)
        assert done.returncode == 0, done.stdout
        assert train_losses(run_dir) == pytest.approx(expected, rel=tolerance)
        record = json.loads((run_dir / "config.json").read_text())
        assert record["processes"] == processes
        assert done.stdout.count("run directory") == 1
    return len(expected)


LAYOUTS = [(1, 4), (2, 1), (2, 2)]


def test_processes_take_the_steps_of_one_device(tmp_path):
    settings = "--max-steps 60 --method.cg.max-steps 3 --dtype float64"
    assert compare(tmp_path, "hf_gauss_newton", settings, 1e-10, LAYOUTS[2:]) == 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-10)]
)
@pytest.mark.parametrize("config", ["sgd", "hf_newton", "hf_gauss_newton"])
def test_every_layout_takes_the_steps_of_one_device(tmp_path, config, dtype, tolerance):
    settings = f"--max-steps 200 --dtype {dtype}"
    if config != "sgd":
        settings += " --method.cg.max-steps 3"
    assert compare(tmp_path, config, settings, tolerance, LAYOUTS) == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-10)]
)
def test_every_layout_of_damped_newton(tmp_path, dtype, tolerance):
    settings = f"--max-steps 3 --dtype {dtype}"
    assert compare(tmp_path, "damped_newton", settings, tolerance, LAYOUTS[:2]) == 3


@pytest.mark.slow
def test_a_run_continues_on_any_number_of_devices_and_processes(data, tmp_path):
    settings = f"--data.dir {data} --data.classes 3 --batch-size 16"
    arguments = ["train", HF, *settings.split(), "--method.cg.max-steps", "3"]
    layouts = [(1, 1), (1, 2), (1, 4), (2, 1), (1, 1), (2, 2)]
    for epochs, (processes, devices) in enumerate(layouts, 1):
        layout = [
            "--epochs",
            epochs,
            "--devices",
            devices,
            "--run-dir",
            tmp_path / "run",
        ]
        done = local(*arguments, *layout, processes=processes)
        assert done.returncode == 0, done.stdout
    whole = ["--epochs", len(layouts), "--run-dir", tmp_path / "whole"]
    assert local(*arguments, *whole, processes=1).returncode == 0
    losses = train_losses(tmp_path / "run")
    assert losses == pytest.approx(train_losses(tmp_path / "whole"), rel=1e-4)
    assert len(losses) == 7 * len(layouts)
