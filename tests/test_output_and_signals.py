"""Nobody listening, a terminal that closes, a disk that is full: real processes."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import idx_files
from together import ROOT, clean_environment

SGD, HF = "configs/paper/sgd.py", "configs/paper/hf_gauss_newton.py"
ENV = clean_environment()
COMMAND = [sys.executable, "-m", "hfdist"]
LOCAL = [sys.executable, "launch/local.py", "--processes", "2", "--"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return idx_files.make_folder(tmp_path_factory.mktemp("data"), train=2000)


@pytest.fixture
def settings(data):
    return f"--data.dir {data} --data.classes 3 --batch-size 16".split()


def losses(run_dir):
    text = (run_dir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [x["loss"] for x in lines if x["split"] == "train"]


LOST = {
    "full": "> /dev/full 2> /dev/full",
    "closed": "<&- >&- 2>&-",
    "pipe": "2>&1 | head -1",
}


@pytest.mark.parametrize(
    "lost", ["full", *(pytest.param(x, marks=pytest.mark.slow) for x in LOST)]
)
def test_training_does_not_need_an_audience(settings, tmp_path, lost):
    run_dir = tmp_path / "run"
    train = [*COMMAND, "train", SGD, *settings, "--epochs", "3", "--run-dir", run_dir]
    train = " ".join(map(str, train))
    shell = f"({train}; echo $? > {tmp_path}/code) {LOST[lost]}"
    subprocess.run(["bash", "-c", shell], cwd=ROOT, env=ENV, capture_output=True)
    assert (tmp_path / "code").read_text() == "0\n"
    assert len(losses(run_dir)) == 375


def start(arguments, command=COMMAND):
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_lines(run_dir):
    deadline = time.monotonic() + 60
    path = run_dir / "metrics.jsonl"
    while not path.exists() or not path.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def long_run(settings, run_dir):
    return ["train", SGD, *settings, "--epochs", "100000", "--run-dir", run_dir]


def test_a_terminal_that_closes_saves(settings, tmp_path):
    process = start(long_run(settings, tmp_path / "run"))
    wait_for_lines(tmp_path / "run")
    process.send_signal(signal.SIGHUP)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 75, output
    assert "SIGHUP: saving, then leaving" in output


@pytest.mark.slow
def test_under_nohup_it_goes_on(settings, tmp_path):
    process = start(long_run(settings, tmp_path / "run"), ["nohup", *COMMAND])
    wait_for_lines(tmp_path / "run")
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=3)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 75, output
    assert "SIGHUP" not in output


@pytest.mark.slow
def test_metrics_deleted_during_a_run(settings, tmp_path):
    process = start(long_run(settings, tmp_path / "run"))
    wait_for_lines(tmp_path / "run")
    (tmp_path / "run/metrics.jsonl").unlink()
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 2, output
    assert "metrics.jsonl cannot be written" in output.splitlines()[-1]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_checkpoint_that_cannot_be_made_ends_the_run_at_once(
    settings, tmp_path, processes
):
    run_dir = tmp_path / "run"
    run = [*long_run(settings, run_dir), "--checkpoint-minutes", "0.05"]
    process = start(run, {1: COMMAND, 2: LOCAL}[processes])
    wait_for_lines(run_dir)
    (run_dir / "checkpoints").rename(run_dir / "elsewhere")
    (run_dir / "checkpoints").write_text("")
    output = process.communicate(timeout=40)[0]
    assert process.returncode == 2, output
    assert "a checkpoint could not be saved in" in output
    assert "Traceback" not in output
    assert "Event loop" not in output


def mounted(folder, kilobytes):
    folder.mkdir()
    size = f"size={kilobytes}k"
    mount = ["mount", "-t", "tmpfs", "-o", size, "none", str(folder)]
    return subprocess.run(mount, capture_output=True).returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may mount a small disk")
@pytest.mark.parametrize(
    "seed", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in range(20))]
)
def test_two_processes_leave_a_full_disk(settings, tmp_path, seed):
    rng = random.Random(seed)
    kilobytes = rng.randint(200, 3000)
    disk = tmp_path / "disk"
    if not mounted(disk, kilobytes):
        pytest.skip("no small disk can be mounted here")
    try:
        run = ["train", rng.choice([SGD, HF]), *settings, "--epochs", "100000"]
        run += ["--checkpoint-steps", rng.choice([30, 125, 335]), "--keep", 9]
        run += ["--model.hidden", rng.choice([10, 300, 3000])]
        process = start([*run, "--run-dir", disk / "run"], LOCAL)
        began = time.monotonic()
        while process.poll() is None and not full(disk):
            assert time.monotonic() < began + 240
            time.sleep(0.05)
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 2, (kilobytes, output)
        assert re.search("hfdist: .* make room", output), output
        assert "Traceback" not in output
        shown = subprocess.run(
            [*COMMAND, "checkpoints", disk / "run"],
            **{"cwd": ROOT, "env": ENV, "capture_output": True, "text": True},
        ).stdout
        assert "unsound" not in shown
        print(kilobytes, shown.count(" sound "), output.splitlines()[-2:])
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def full(disk: Path) -> bool:
    return os.statvfs(disk).f_bavail < 4
