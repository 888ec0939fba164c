"""launch/slurm.sbatch, and shells inside an allocation, under a real SLURM.

tests/launch/slurm.sh starts two nodes on this machine; each has two stand-ins for GPUs.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import idx_files
from together import ROOT, clean_environment

SCRIPT = ROOT / "launch" / "slurm.sbatch"
HF = "configs/paper/hf_gauss_newton.py"
SGD = "configs/paper/sgd.py"
# Where Debian has the daemons, and for jobs where hfdist is if there is no .venv.
PATH = f"{os.environ['PATH']}:/usr/sbin:{Path(sys.executable).parent}"
ENV = clean_environment() | {"PATH": PATH}
PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged")
LEADING = {"JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID"}
SOON = 20  # seconds within which a fault must end a job

MISSING = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"{', '.join(MISSING)} missing: apt-get install slurm-wlm munge",
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start SLURM"),
]


def start(folder, *gpus):
    """Start SLURM; the environment that its commands need."""
    script = ROOT / "tests" / "launch" / "slurm.sh"
    subprocess.run([script, "start", folder, *gpus], env=ENV, check=True, timeout=90)
    return {**ENV, "SLURM_CONF": str(folder / "slurm.conf")}


def stop(folder):
    script = ROOT / "tests" / "launch" / "slurm.sh"
    subprocess.run([script, "stop", folder], env=ENV, check=True, timeout=90)


@pytest.fixture
def folder():
    """With a short name, as the daemons' sockets need it."""
    with tempfile.TemporaryDirectory(prefix="slurm") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def slurm():
    with tempfile.TemporaryDirectory(prefix="slurm") as name:
        yield start(Path(name))
        stop(Path(name))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return idx_files.make_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture
def small(data):
    """Settings of a run on a small data set: 13 steps an epoch."""
    return f"--data.dir {data} --data.classes 3 --batch-size 8".split()


def call(env, *command, timeout=120):
    return subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def submit(env, folder, *arguments):
    """The id of a job; its output goes to folder/ID.out."""
    done = call(env, "sbatch", "--parsable", f"--output={folder}/%j.out", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def facts(env, job):
    """What SLURM says of a job, by name."""
    shown = call(env, "scontrol", "show", "job", job).stdout
    return dict(re.findall(r"(\w+)=(\S+)", shown))


def wait_until(reached, seconds):
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


def wait_for_end(env, job, seconds):
    """The facts of a job that has ended within these seconds."""
    ended = {"COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT"}
    wait_until(lambda: facts(env, job)["JobState"] in ended, seconds)
    return facts(env, job)


def lines(run_dir, split="train"):
    text = (run_dir / "metrics.jsonl").read_text()
    return [x for x in map(json.loads, text.splitlines()) if x["split"] == split]


def processes(run_dir):
    return json.loads((run_dir / "config.json").read_text())["processes"]


def probe(folder, before_config=""):
    """A config that leaves its process's environment in the folder."""
    file = folder / "probe.py"
    file.write_text(
        "import json, os, pathlib\n"
        "from hfdist import SGD\n"
        "from hfdist.runs.config import Config\n"
        "process = os.environ.get('SLURM_PROCID', '')\n"
        f"file = pathlib.Path({str(folder)!r}, f'env{{process}}.json')\n"
        "file.write_text(json.dumps(dict(os.environ)))\n"
        f"{before_config}\n"
        "config = Config(method=SGD(learning_rate=0.1))\n"
    )
    return file


def environment(folder, process=""):
    return json.loads((folder / f"env{process}.json").read_text())


@pytest.mark.parametrize(
    "shape", [("--nodes=2",), ("--ntasks-per-node=2",)], ids=["2 nodes", "1 node"]
)
def test_two_tasks_take_the_steps_of_one_process(slurm, tmp_path, shape):
    # Few CG steps: long solves amplify the order of summation.
    few = ("--max-steps", "20", "--method.cg.max-steps", "3")
    job = submit(
        slurm, tmp_path, *shape, SCRIPT, HF, *few, "--run-dir", tmp_path / "two"
    )
    ended = wait_for_end(slurm, job, 180)
    output = (tmp_path / f"{job}.out").read_text()
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), output
    assert processes(tmp_path / "two") == 2
    assert re.findall(r"(\d+): .*training loss, mean", output) == ["0"]

    one = [sys.executable, "-m", "hfdist", "train", HF, *few]
    done = call(ENV, *one, "--run-dir", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    assert processes(tmp_path / "one") == 1
    assert len(lines(tmp_path / "two")) == 20
    for a, b in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_each_task_sees_a_gpu_of_its_own_and_time_to_start(slurm, small, tmp_path):
    job = submit(
        slurm,
        tmp_path,
        *("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=2"),
        *(SCRIPT, probe(tmp_path), *small, "--max-steps", "1"),
        *("--run-dir", tmp_path / "run"),
    )
    ended = wait_for_end(slurm, job, 180)
    assert ended["JobState"] == "COMPLETED", (tmp_path / f"{job}.out").read_text()
    assert processes(tmp_path / "run") == 4
    tasks = [environment(tmp_path, process) for process in range(4)]
    seen = [(x["SLURMD_NODENAME"], x["CUDA_VISIBLE_DEVICES"]) for x in tasks]
    nodes = ("127.0.0.1", "127.0.0.2")
    assert sorted(seen) == [(node, gpu) for node in nodes for gpu in ("0", "1")]
    assert all(x["SLURM_CPUS_PER_TASK"] == "2" for x in tasks)
    assert all(x["HFDIST_START_SECONDS"] == "300" for x in tasks)


def test_a_cluster_without_gpus(small, tmp_path, folder):
    env = start(folder, "0")
    try:
        job = submit(
            env,
            tmp_path,
            *("--gpus-per-task=0", "--ntasks-per-node=2", SCRIPT, SGD, *small),
            *("--epochs", "1", "--run-dir", tmp_path / "run"),
        )
        ended = wait_for_end(env, job, 180)
    finally:
        stop(folder)
    assert ended["JobState"] == "COMPLETED", (tmp_path / f"{job}.out").read_text()
    assert processes(tmp_path / "run") == 2


# A shell inside an allocation of two tasks, and which leading variables it has there.
SHELLS = {
    "salloc --ntasks=2": {"JOB_ID", "NTASKS"},
    "salloc --ntasks=2 srun --ntasks=1 --pty": LEADING,
    # What salloc starts by itself where LaunchParameters has use_interactive_step.
    "salloc --ntasks=2 srun --interactive --preserve-env": LEADING,
    "sbatch --ntasks=2 --wait --output=/dev/null": LEADING - {"STEP_NODELIST"},
    # The job inherits what the step that submits it had.
    "salloc srun sbatch --ntasks=2 --wait --output=/dev/null": LEADING,
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_inside_an_allocation_is_one_process(slurm, small, tmp_path, shell):
    train = [sys.executable, "-m", "hfdist", "train", probe(tmp_path), *small]
    train += ["--max-steps", "1", "--run-dir", tmp_path / "run"]
    if "sbatch" in shell:
        train = ["--wrap", " ".join(map(str, train))]
    done = call(slurm, *shell.split(), *train)
    assert done.returncode == 0, done.stdout + done.stderr
    assert processes(tmp_path / "run") == 1
    seen = environment(tmp_path, 0 if "PROCID" in SHELLS[shell] else "")
    assert {name for name in LEADING if f"SLURM_{name}" in seen} == SHELLS[shell]


def test_a_task_that_fails_before_it_joins_ends_the_job(slurm, small, tmp_path):
    """The other would wait 300 s for it."""
    config = probe(tmp_path, "assert process == '0'")
    run_dir = ("--run-dir", tmp_path / "run")
    job = submit(slurm, tmp_path, "--nodes=2", SCRIPT, config, *small, *run_dir)
    wait_until((tmp_path / "env1.json").exists, 30)
    ended = wait_for_end(slurm, job, SOON)
    assert ended["JobState"] == "FAILED"
    assert ended["ExitCode"] != "0:0"
    assert "AssertionError" in (tmp_path / f"{job}.out").read_text()


def test_a_run_that_diverges_ends_with_3_and_says_so(slurm, small, tmp_path):
    newton = ("configs/paper/newton.py", "--model.hidden", "2", "--max-rejected", "3")
    run_dir = ("--run-dir", tmp_path / "run")
    job = submit(slurm, tmp_path, "--nodes=2", SCRIPT, *newton, *small, *run_dir)
    ended = wait_for_end(slurm, job, 180)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "3:0")
    assert (tmp_path / f"{job}.out").read_text().count("hfdist: diverged") == 1


@pytest.mark.parametrize("process", [0, 1])
def test_a_task_that_dies_ends_the_job(slurm, small, tmp_path, process):
    config = probe(tmp_path, "file.with_suffix('.pid').write_text(str(os.getpid()))")
    job = submit(
        slurm,
        tmp_path,
        *("--nodes=2", SCRIPT, config, *small),
        *("--epochs", "100000", "--run-dir", tmp_path / "run"),
    )
    wait_until((tmp_path / "run" / "metrics.jsonl").exists, 60)
    os.kill(int((tmp_path / f"env{process}.pid").read_text()), signal.SIGKILL)
    ended = wait_for_end(slurm, job, SOON)
    assert ended["JobState"] == "FAILED"
    assert ended["ExitCode"] != "0:0"
    assert ended["Restarts"] == "0"


def test_a_requeued_job_continues_in_its_run_directory(slurm, small, tmp_path):
    """Without --run-dir: the job's own folder, under that of sbatch."""
    epochs = ("--epochs", "25", "--checkpoint-minutes", "0")
    job = submit(
        slurm,
        tmp_path,
        *(f"--chdir={tmp_path}", "--nodes=2", SCRIPT, ROOT / SGD, *small, *epochs),
    )
    run_dir = tmp_path / "runs" / f"slurm-{job}"
    wait_until(
        lambda: any(x.name.isdecimal() for x in run_dir.glob("checkpoints/*")), 60
    )
    assert call(slurm, "scontrol", "requeue", job).returncode == 0
    wait_until(lambda: facts(slurm, job)["Restarts"] == "1", 20)
    assert len(lines(run_dir)) < 25 * 13
    ended = wait_for_end(slurm, job, 180)
    output = (tmp_path / f"{job}.out").read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), output
    assert [x["step"] for x in lines(run_dir)] == list(range(1, 25 * 13 + 1))
    assert output.count("epoch 1 ") == 1
    assert "SIGTERM: saving, then leaving" in output
    assert output.count("training loss, mean") == 2  # where it stopped, and at the end


def test_a_job_saves_and_is_queued_again_before_its_time_limit(slurm, small, tmp_path):
    """As USR1 tells it to; here it comes by hand."""
    epochs = ("--epochs", "200", "--checkpoint-minutes", "1e6")
    run_dir = tmp_path / "run"
    options = (*epochs, "--run-dir", run_dir)
    job = submit(slurm, tmp_path, "--ntasks-per-node=2", SCRIPT, SGD, *small, *options)
    wait_until((run_dir / "metrics.jsonl").exists, 60)
    wait_until(lambda: len(lines(run_dir)) > 30, 60)
    call(slurm, "scancel", "--batch", "--signal=USR1", job)
    wait_until(lambda: facts(slurm, job)["Restarts"] == "1", 30)
    ended = wait_for_end(slurm, job, 180)
    output = (tmp_path / f"{job}.out").read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), output
    assert [x["step"] for x in lines(run_dir)] == list(range(1, 200 * 13 + 1))
    assert "stopped after step" in output
