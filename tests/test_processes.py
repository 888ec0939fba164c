"""Runs of several real processes: they train alike, and they end together."""

import contextlib
import json
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import idx_files
import together
from quick import mostly_slow
from together import (
    ROOT,
    children_of,
    clean_environment,
    free_port,
    train_losses,
    wait_for,
)

HF, SGD = "configs/paper/hf_gauss_newton.py", "configs/paper/sgd.py"
ENV = clean_environment()
TRAIN = ("-m", "hfdist")


def start(process, arguments, port, processes=2, program=TRAIN, **env):
    """One process of a run, as a launcher would start it."""
    place = {
        "HFDIST_COORDINATOR": f"localhost:{port}",
        "HFDIST_NUM_PROCESSES": str(processes),
        "HFDIST_PROCESS_ID": str(process),
    }
    return together.start(sys.executable, *program, *arguments, **place | env)


# Sums over the devices of all processes, without end.
SUMS = """
import sys, hfdist
from pathlib import Path
from jax.experimental.multihost_utils import sync_global_devices
with hfdist.joined():
    while True:
        sync_global_devices("here")
        Path(sys.argv[1]).write_text("here")
"""


def start_sums(tmp_path, **env):
    """A pair of processes that have begun to add."""
    port, file = free_port(), tmp_path / f"summed-{time.monotonic()}"
    pair = [start(i, [file], port, program=("-c", SUMS), **env) for i in (0, 1)]
    wait_for(file.exists)
    return pair


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
    path = run_dir / "metrics.jsonl"
    wait_for(lambda: path.exists() and path.read_text().count("\n") >= count)


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
    return ["train", SGD, *settings.split(), "--run-dir", tmp_path / "run"]


def test_a_killed_worker_is_named_and_ends_the_run(tmp_path):
    pair = start_sums(tmp_path, HFDIST_SILENCE_SECONDS="3")
    pair[1].kill()
    codes, outputs = ends(pair, within=15)  # 20 s with the default of 12
    assert codes == [1, -signal.SIGKILL]
    assert (
        f"process 1 on {socket.gethostname()} gave no sign of life for 3 s"
        in (outputs[0])
    )
    assert "Traceback" not in outputs[0]


def check_killed_coordinator(tmp_path, instant):
    pair = start_sums(tmp_path)
    time.sleep(instant)
    pair[0].kill()
    codes, outputs = ends(pair, within=15)
    assert codes == [-signal.SIGKILL, 1]
    assert re.search("hfdist: process 0 at localhost:.* is gone: killed", outputs[1])
    assert "*** Check failure" not in outputs[1]  # JAX's abort


def test_a_killed_coordinator_ends_the_run(tmp_path):
    check_killed_coordinator(tmp_path, 0)


@pytest.mark.slow
def test_a_coordinator_killed_at_any_instant_ends_the_run(tmp_path):
    rng = random.Random(0)
    for _ in range(10):
        check_killed_coordinator(tmp_path, rng.uniform(0, 3))


def test_a_coordinator_that_hangs_is_given_up(tmp_path):
    pair = start_sums(tmp_path, HFDIST_SILENCE_SECONDS="3")
    pair[0].send_signal(signal.SIGSTOP)
    try:
        (code,), (output,) = ends(pair[1:], within=12)
    finally:
        pair[0].kill()
    assert code == 1
    assert "process 0 at localhost:" in output


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_pause_shorter_than_the_silence_ends_nothing(tmp_path, who):
    pair = start_sums(tmp_path, HFDIST_SILENCE_SECONDS="40")
    try:
        pair[who].send_signal(signal.SIGSTOP)
        time.sleep(20)
        pair[who].send_signal(signal.SIGCONT)
        time.sleep(5)
        assert [p.poll() for p in pair] == [None, None]
    finally:
        for p in pair:
            p.kill()


FAILS = """
import sys, time, hfdist.cluster.processes
from pathlib import Path
hfdist.cluster.processes.WAY_OUT = 2
with hfdist.joined():
    Path(sys.argv[1]).write_text("here")
    while not Path(sys.argv[2]).exists():
        time.sleep(0.1)
    raise ValueError("the way out is long")
"""


def test_a_process_fails_in_time_though_nobody_answers(tmp_path):
    here, go, port = tmp_path / "here", tmp_path / "go", free_port()
    program, env = ("-c", FAILS), {"HFDIST_SILENCE_SECONDS": "60"}
    first = start(0, [tmp_path / "0", "no"], port, program=program, **env)
    second = start(1, [here, go], port, program=program, **env)
    try:
        wait_for(here.exists)
        first.send_signal(signal.SIGSTOP)
        go.touch()
        (code,), (output,) = ends([second], within=10)
    finally:
        first.kill()
    assert code == 1
    assert "hfdist: ValueError: the way out is long" in output


LEAVES = """
import os, hfdist.cluster.processes
hfdist.cluster.processes.WAY_OUT = 1
os.set_blocking(2, False)
try:
    while os.write(2, b"x" * 4096):
        pass
except BlockingIOError:
    os.set_blocking(2, True)
hfdist.cluster.processes.leave(3, "nobody reads this")
"""


def test_a_process_leaves_though_nobody_reads_what_it_says():
    command = [sys.executable, "-c", LEAVES]
    process = subprocess.Popen(command, cwd=ROOT, env=ENV, stderr=subprocess.PIPE)
    assert process.wait(timeout=15) == 3


ALL = """
import hfdist, os
from hfdist.cluster.processes import first_hears, from_all
with hfdist.joined():
    me = int(os.environ["HFDIST_PROCESS_ID"])
    print(from_all({"me": me}), from_all(me * me), first_hears(60)(me))
    late = first_hears(0.5)
    try:
        print(me if me == 2 else late(me))
    except TimeoutError as error:
        print(error)
    if me == 0:
        print(open("/proc/net/tcp").read(), open("/proc/net/tcp6").read())
    from_all(None)
"""


def test_all_hear_of_all_and_only_the_address_asked_for_listens():
    """Process 0 behind NAT: its name is not its own."""
    port = free_port()
    address = f"127.0.0.3:{port}"
    own = {"HFDIST_COORDINATOR": "nat.invalid:1", "HFDIST_BIND_ADDRESS": address}
    places = [own, *[{"HFDIST_COORDINATOR": address}] * 2]
    trio = [
        start(i, [], port, processes=3, program=("-c", ALL), **env)
        for i, env in enumerate(places)
    ]
    codes, outputs = ends(trio, within=60)
    assert codes == [0, 0, 0], outputs
    for process, output in enumerate(outputs):
        heard = "[]" if process else "[0, 1, 2]"
        assert f"[{{'me': 0}}, {{'me': 1}}, {{'me': 2}}] [0, 1, 4] {heard}\n" in output
    assert "process 2 has not answered in time" in outputs[0]
    assert listeners(outputs[0], port) == {"0300007F"}


def listeners(tables, port):
    """The addresses, as /proc/net/tcp and tcp6 have them, on which a port listens.

    IPv4 addresses within IPv6 without what comes before them.
    """
    found = re.findall(rf": (\w+):{port:04X} [0:]+ 0A ", tables)
    return {address.removeprefix("0000000000000000FFFF0000") for address in found}


FAULTY = """
import os
from pathlib import Path
from hfdist import SGD
from hfdist.runs.config import Config
from hfdist.tasks.examples import Arrays
from hfdist.tasks.idx import IDX

class Reads(Arrays):
    count = 0
    def gather(self, places):
        Reads.count += 1
        if Reads.count == 30 and os.environ["HFDIST_PROCESS_ID"] == "WHERE":
            raise RuntimeError("the disk is on fire")
        return super().gather(places)

class Faulty(IDX):
    def examples(self, split):
        return Reads(super().examples(split).entries)

config = Config(method=SGD(), data=Faulty(dir=Path("DATA"), classes=3), batch_size=16,
                epochs=100000)
"""


@pytest.mark.parametrize("where", mostly_slow([0, 1], [1]))
def test_an_exception_in_one_process_ends_all(data, tmp_path, where):
    text = FAULTY.replace("DATA", str(data)).replace("WHERE", str(where))
    (tmp_path / "config.py").write_text(text)
    arguments = ["train", tmp_path / "config.py", "--run-dir", tmp_path / "run"]
    port = free_port()
    soon = {"HFDIST_SILENCE_SECONDS": "4"}
    pair = [start(i, arguments, port, **soon) for i in (0, 1)]
    codes, outputs = ends(pair, within=40)
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
        codes, outputs = ends([start(0, long_run, port)], within=40)
    assert codes == [2]
    assert (
        f"process 0 cannot listen on localhost:{port} (Address already in"
        in (outputs[0])
    )


def test_other_settings_and_versions_are_refused_by_both(long_run, tmp_path):
    found = tmp_path / "hfdist-9.9.dist-info"
    found.mkdir()
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: hfdist\nVersion: 9.9")
    port = free_port()
    other = [*long_run, "--method.learning-rate", "2"]
    newer = start(1, other, port, PYTHONPATH=str(tmp_path))
    codes, outputs = ends([start(0, long_run, port), newer], within=40)
    assert codes == [2, 2]
    for output in outputs:
        assert "process 1 on" in output
        assert "was not started like process 0: method.learning_rate is 2.0" in output
        assert "version of hfdist is 9.9 there" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_batch_that_the_processes_cannot_share_is_refused(long_run, tmp_path):
    done = local(*long_run, "--batch-size", "15")
    assert done.returncode == 2
    assert "15 cannot be split evenly over 2 devices in 2 process(es)" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_the_launcher_is_alone_and_passes_signals_on(long_run, tmp_path, number):
    launcher = together.start(*local_command(long_run))
    wait_for_lines(tmp_path / "run", 10)
    children = children_of(launcher)
    env = Path(f"/proc/{children[0]}/environ").read_text()
    port = int(re.search(r"HFDIST_COORDINATOR=localhost:(\d+)", env)[1])
    tables = [Path("/proc/net", name).read_text() for name in ("tcp", "tcp6")]
    loopback = {"0100007F", "00000000000000000000000001000000"}
    assert len(listeners("".join(tables), port) & loopback) == 1
    assert listeners("".join(tables), port) <= loopback
    launcher.send_signal(number)
    codes, _ = ends([launcher], within=20)
    assert codes == [75]  # saved
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


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


def test_processes_take_the_steps_of_one_device(data, tmp_path):
    settings = f"--data.dir {data} --data.classes 3 --batch-size 8 --max-steps 20"
    settings += " --method.cg.max-steps 3 --dtype float64"
    assert compare(tmp_path, "hf_gauss_newton", settings, 1e-10, LAYOUTS[2:]) == 20


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
