"""Nobody listening, a terminal that closes, a disk that is full: real processes."""

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
from together import (
    ROOT,
    clean_environment,
    run_together,
    small_disk,
    start,
    train_losses,
    wait_for,
)

SGD, HF = "configs/paper/sgd.py", "configs/paper/hf_gauss_newton.py"
SHARED = f"{HF} --sharding vectors --method.warm-start 0.9".split()
ENV = clean_environment()
COMMAND = [sys.executable, "-m", "hfdist"]
LOCAL = [sys.executable, "launch/local.py", "--processes", "2", "--"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return idx_files.make_folder(tmp_path_factory.mktemp("data"), train=2000)


@pytest.fixture
def settings(data):
    return f"--data.dir {data} --data.classes 3 --batch-size 16".split()


LOST = {
    "full": "> /dev/full 2> /dev/full",
    "closed": "<&- >&- 2>&-",
    "pipe": "2>&1 | head -1",
}


@pytest.mark.slow
@pytest.mark.parametrize("lost", LOST)
def test_training_does_not_need_an_audience(settings, tmp_path, lost):
    run_dir = tmp_path / "run"
    train = [*COMMAND, "train", SGD, *settings, "--epochs", "3", "--run-dir", run_dir]
    train = " ".join(map(str, train))
    shell = f"({train}; echo $? > {tmp_path}/code) {LOST[lost]}"
    subprocess.run(["bash", "-c", shell], cwd=ROOT, env=ENV, capture_output=True)
    assert (tmp_path / "code").read_text() == "0\n"
    assert len(train_losses(run_dir)) == 375


def wait_for_lines(run_dir):
    path = run_dir / "metrics.jsonl"
    wait_for(lambda: path.exists() and path.read_bytes())


def long_run(settings, run_dir):
    return ["train", SGD, *settings, "--epochs", "100000", "--run-dir", run_dir]


def test_a_terminal_that_closes_saves(settings, tmp_path):
    process = start(*COMMAND, *long_run(settings, tmp_path / "run"))
    wait_for_lines(tmp_path / "run")
    process.send_signal(signal.SIGHUP)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 75, output
    assert "SIGHUP: saving, then leaving" in output


@pytest.mark.slow
def test_under_nohup_it_goes_on(settings, tmp_path):
    process = start("nohup", *COMMAND, *long_run(settings, tmp_path / "run"))
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
    process = start(*COMMAND, *long_run(settings, tmp_path / "run"))
    wait_for_lines(tmp_path / "run")
    (tmp_path / "run/metrics.jsonl").unlink()
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 2, output
    assert "metrics.jsonl cannot be written" in output.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_checkpoint_that_cannot_be_made_ends_the_run_at_once(
    settings, tmp_path, processes
):
    run_dir = tmp_path / "run"
    run = [*long_run(settings, run_dir), "--checkpoint-minutes", "0.05"]
    process = start(*{1: COMMAND, 2: LOCAL}[processes], *run)
    wait_for_lines(run_dir)
    (run_dir / "checkpoints").rename(run_dir / "elsewhere")
    (run_dir / "checkpoints").write_text("")
    output = process.communicate(timeout=40)[0]
    assert process.returncode == 2, output
    assert "a checkpoint could not be saved in" in output
    assert "Traceback" not in output
    assert "Event loop" not in output


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may mount a small disk")
@pytest.mark.parametrize("seed", range(20))
def test_two_processes_leave_a_full_disk(settings, tmp_path, seed):
    rng = random.Random(seed)
    kilobytes = rng.randint(200, 3000)
    disk = tmp_path / "disk"
    with small_disk(disk, kilobytes):
        run = [
            "train",
            *rng.choice([[SGD], [HF], SHARED]),
            *settings,
            "--epochs",
            "100000",
        ]
        run += ["--checkpoint-steps", rng.choice([30, 125, 335]), "--keep", 9]
        run += ["--model.hidden", rng.choice([10, 300, 3000])]
        process = start(*LOCAL, *run, "--run-dir", disk / "run")
        began = time.monotonic()
        while process.poll() is None and not full(disk):
            assert time.monotonic() < began + 240
            time.sleep(0.05)
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 2, (kilobytes, output)
        assert re.search("hfdist: .* make room", output), output
        assert "Traceback" not in output
        ((_, shown),) = run_together([{}], "checkpoints", disk / "run")
        assert "unsound" not in shown
        print(kilobytes, shown.count(" sound "), output.splitlines()[-2:])


def full(disk: Path) -> bool:
    return os.statvfs(disk).f_bavail < 4
