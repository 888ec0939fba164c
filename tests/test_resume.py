"""A run that was interrupted, and continued, equals one that never was."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import hfdist
import idx_files
import together
from hfdist import UsageError
from hfdist.runs.checkpoint import Checkpoints
from hfdist.runs.resume import restore_newest
from hfdist.runs.saver import Saver
from together import children_of, run_together, small_disk, train_losses, wait_for
from toolkit.recorded import story

HF, SGD = "configs/paper/hf_gauss_newton.py", "configs/paper/sgd.py"
NYSTROM = "--method.preconditioner nystrom --method.probes.rank 4"
KFAC = "--method.preconditioner kronecker --method.step-rule two_term"
LM = "--method.damping-rule levenberg_marquardt --method.warm-start 0.9"
COMMANDS = {1: ["-m", "hfdist"], 2: ["launch/local.py", "--processes", "2", "--"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return idx_files.make_folder(tmp_path_factory.mktemp("data"), train=2000)


@pytest.fixture
def settings(data):
    return (
        f"--data.dir {data} --data.classes 3 --batch-size 16 --epochs 2 "
        f"--steps-per-dispatch 7 --checkpoint-steps 20 --checkpoint-minutes 1e9 "
        "--max-rejected 9999"
    ).split()


def start(arguments, processes=1):
    return together.start(sys.executable, *COMMANDS[processes], "train", *arguments)


def finish(arguments, processes=1):
    """Run to the end: (exit code, output)."""
    process = start(arguments, processes)
    output = process.communicate(timeout=300)[0]
    return process.returncode, output


def wait_for_step(run_dir, step):
    path = run_dir / "metrics.jsonl"
    wait_for(lambda: path.exists() and f'"step": {step},' in path.read_text())


def make_whole(tmp_path, arguments, processes):
    whole = tmp_path / "whole"
    code, output = finish([*arguments, "--run-dir", whole], processes)
    assert code == 0, output
    return story(whole)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_the_run_continues_as_if_nothing_had_been(
    settings, tmp_path, number
):
    arguments = [HF, *settings, *LM.split()]
    run_dir = tmp_path / "run"
    process = start([*arguments, "--run-dir", run_dir])
    wait_for_step(run_dir, random.Random(number).randint(30, 200))
    process.send_signal(number)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 75, output
    stopped = int(re.search(r"stopped after step (\d+), and saved", output).group(1))
    assert story(run_dir)[1] == stopped
    code, output = finish([*arguments, "--run-dir", run_dir])
    assert code == 0, output
    assert story(run_dir) == make_whole(tmp_path, arguments, 1)


def test_a_second_signal_ends_the_run_at_once(settings, tmp_path):
    # One scan of all the steps: the main thread waits in it.
    arguments = [HF, *settings, "--epochs", "20000", "--run-dir", tmp_path / "run"]
    process = start(arguments)
    wait_for_step(tmp_path / "run", 20)
    os.kill(process.pid, signal.SIGSTOP)  # so that both are there together
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    output = process.communicate(timeout=10)[0]
    assert process.returncode in (128 + signal.SIGTERM, 128 + signal.SIGINT), output
    assert "again: leaving at once" in output


def kill(process):
    """A process and its children, at once."""
    for pid in (process.pid, *children_of(process)):
        os.kill(pid, signal.SIGKILL)
    process.communicate()


def kill_and_continue(tmp_path, arguments, processes, kills, seed):
    """Kill the run at random instants, some of them during a save, until it is done."""
    rng = random.Random(seed)
    run_dir = tmp_path / "run"
    for _ in range(kills):
        process = start([*arguments, "--run-dir", run_dir], processes)
        time.sleep(rng.uniform(1.5, 5))
        kill(process)
    code, output = finish([*arguments, "--run-dir", run_dir], processes)
    assert code == 0, output
    assert story(run_dir) == make_whole(tmp_path, arguments, processes)


@pytest.mark.slow
def test_a_run_killed_again_and_again_equals_one_that_was_not(settings, tmp_path):
    kill_and_continue(tmp_path, [HF, *settings, *LM.split()], 1, kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("learnt", [KFAC, NYSTROM])
def test_what_a_step_has_learnt_for_the_next_is_kept(
    settings, tmp_path, processes, learnt
):
    arguments = [HF, *settings, *learnt.split(), "--method.probes.every", "3"]
    run_dir = ["--run-dir", tmp_path / "run"]
    code, output = finish([*arguments, "--max-steps", "7", *run_dir], processes)
    assert code == 0, output
    code, output = finish([*arguments, *run_dir], processes)
    assert code == 0, output
    lines, *rest = story(tmp_path / "run")
    assert lines.pop(7)["split"] == "test"  # where the first part ended
    assert (lines, *rest) == make_whole(tmp_path, arguments, processes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "processes"),
    [
        *product([SGD, HF], [1, 2]),
        (f"{HF} --sharding vectors", 2),
        (f"{HF} --sharding params", 2),
        (f"{HF} --sharding params --devices 2", 1),
    ],
)
def test_fifty_kills(settings, tmp_path, method, processes):
    arguments = [*method.split(), *settings, "--checkpoint-steps", "7"]
    arguments += LM.split() if HF in method else []
    kill_and_continue(tmp_path, arguments, processes, kills=50, seed=processes)


@pytest.mark.slow
def test_a_worker_killed_three_times_is_started_again(settings, tmp_path):
    arguments = [HF, *settings, *LM.split()]
    run_dir = tmp_path / "run"
    launcher = together.start(
        *(sys.executable, "launch/local.py", "--processes", "2"),
        *("--max-restarts", "3", "--", "train"),
        *(*arguments, "--run-dir", run_dir),
    )
    for step in (30, 120, 250):
        wait_for_step(run_dir, step)
        os.kill(children_of(launcher)[step % 2], signal.SIGKILL)
        time.sleep(2)
    output = launcher.communicate(timeout=120)[0]
    assert launcher.returncode == 0, output
    assert output.count("launch: starting again") == 3
    assert story(run_dir) == make_whole(tmp_path, arguments, 2)


def in_parts(array):
    return jax.device_put(
        array, NamedSharding(hfdist.make_mesh(4), PartitionSpec("data"))
    )


LIKE = (
    {"kernel": jnp.arange(5000.0).reshape(50, 100), "bias": jnp.ones(7, jnp.float32)},
    {"damping": jnp.float32(2), "start": in_parts(jnp.arange(900) * 1.5)},
)


def shifted(step):
    return tuple({k: v + step for k, v in tree.items()} for tree in LIKE)


NEVER_READ = ("commit_success.txt", "_CHECKPOINT_METADATA")


def damage(folder, rng):
    """One random accident to a checkpoint; what happened."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in NEVER_READ]
    file = rng.choice(sorted(files, key=lambda p: p.stat().st_size))  # names vary
    raw = bytearray(file.read_bytes())
    match rng.choice(["zeros", "noise", "cut", "remove", "empty"]):
        case "zeros":
            at = rng.randrange(len(raw))
            raw[at : at + 64] = bytes(len(raw[at : at + 64]))
        case "noise":
            at = rng.randrange(len(raw))
            raw[at] ^= 1 << rng.randrange(8)
        case "cut":
            raw = raw[: rng.randrange(len(raw))]
        case "remove":
            file.unlink()
            return f"removed {file}"
        case "empty":
            (folder.parent / "9").mkdir()
            return "an empty step"
    file.write_bytes(raw)
    return f"changed {file}"


def corruptions(tmp_path, capsys, count):
    with closing(Saver(tmp_path / "saved" / "checkpoints", "a run", keep=2)) as saver:
        for step in (3, 7):
            saver.save(step, *shifted(step), {"step": step, "metrics_bytes": 10 * step})
    fallen_back = 0
    for seed in range(count):
        folder = tmp_path / str(seed) / "checkpoints"
        shutil.copytree(tmp_path / "saved" / "checkpoints", folder)
        what = damage(folder / "7", random.Random(seed))
        checkpoints = Checkpoints(folder, "a run")
        position, carry = restore_newest(checkpoints, lambda _: LIKE, saved=True)
        # Damage that reading does not touch may leave the newest sound.
        assert position.step in (3, 7), what
        assert position.metrics_bytes == 10 * position.step
        for tree, expected in zip(carry, shifted(position.step), strict=True):
            for name, array in expected.items():
                np.testing.assert_array_equal(tree[name], array, err_msg=what)
        said = capsys.readouterr().err
        if position.step == 3:
            fallen_back += 1
            assert re.search(r"checkpoint 7 is unsound: .*: using step 3 instead", said)
        elif "empty" in what:
            assert re.search(r"checkpoint 9 is unsound: .*: using step 7 instead", said)
        with closing(Saver(folder, "a run", keep=2)) as saver:
            saver.save(11, *shifted(11), {"step": 11, "metrics_bytes": 0})
        assert checkpoints.steps()[-1] == 11
        shutil.rmtree(tmp_path / str(seed))
    assert fallen_back > count / 5  # much that may break is never read


def test_damage_is_noticed(tmp_path, capsys):
    corruptions(tmp_path, capsys, count=15)


@pytest.mark.slow
def test_a_hundred_kinds_of_damage(tmp_path, capsys):
    corruptions(tmp_path, capsys, count=100)


@pytest.mark.slow  # test_output_and_signals.py has a quick one
@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may mount a small disk")
def test_a_full_disk_is_reported_and_harms_no_checkpoint(settings, tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, 2048):
        # 64 KB of lines, and 0.6 MB for each checkpoint.
        run = [SGD, *settings, "--model.hidden", "7000", "--keep", "9"]
        code, output = finish([*run, "--run-dir", disk / "run"])
        assert code == 2, output
        assert "earlier ones are whole; make room" in output.splitlines()[-1]
        ((_, shown),) = run_together([{}], "checkpoints", disk / "run")
        assert " sound " in shown
        subprocess.run(["mount", "-o", "remount,size=90m", disk], check=True)
        assert finish([*run, "--run-dir", disk / "run"])[0] == 0


NAN = """
import numpy as np
from hfdist import HessianFree
from hfdist.runs.config import Config
from hfdist.tasks.examples import Arrays
from hfdist.tasks.idx import IDX

class Spoiled(IDX):
    def examples(self, split):
        entries = super().examples(split).entries
        inputs = entries["inputs"].astype(np.float32)
        if split == "train":
            inputs[777] = np.nan
        return Arrays(entries | {"inputs": inputs})

config = Config(method=HessianFree(), data=Spoiled())
"""


@pytest.mark.slow
def test_a_batch_that_is_not_a_number_is_passed_over(tmp_path):
    (tmp_path / "config.py").write_text(NAN)
    run_dir = tmp_path / "run"
    code, output = finish([tmp_path / "config.py", "--run-dir", run_dir])
    assert code == 0, output
    lines = [x for x in story(run_dir)[0] if x["split"] == "train"]
    rejected = [i for i, x in enumerate(lines) if not x["accepted"]]
    assert len(rejected) == 7  # once an epoch
    assert all(lines[i]["loss"] == "nan" for i in rejected)
    assert all(lines[i + 1]["damping"] == 6 for i in rejected if i + 1 < len(lines))
    assert sum(x["damping"] != 4 for x in lines) <= 7
    losses = [x for x in train_losses(run_dir)[-938:] if x != "nan"]
    assert 0.20 <= sum(losses) / len(losses) <= 0.25


@pytest.mark.slow
def test_a_new_run_starts_from_the_params_of_another(settings, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    assert finish([HF, *settings, "--run-dir", old])[0] == 0
    code, output = finish([SGD, *settings, "--init-from", old, "--run-dir", new])
    assert code == 0, output
    assert train_losses(new)[0] < 0.5 * train_losses(old)[0]


def test_a_checkpoint_of_another_format_is_refused_and_stays(tmp_path, monkeypatch):
    """It is no damage: an older hfdist can continue it."""
    folder = tmp_path / "checkpoints"
    state = {"params": {"w": jnp.ones(3)}, "optimizer": {"count": jnp.int32(4)}}
    monkeypatch.setattr("hfdist.runs.saver.FORMAT", 99)
    with closing(Saver(folder, "a run")) as saver:
        saver.save(5, record={"step": 5}, **state)
    monkeypatch.undo()
    checkpoints = Checkpoints(folder, "a run")
    with pytest.raises(UsageError, match=r"checkpoint 5 in .* is of format 99"):
        checkpoints.restore(5, **state)
    items, _ = checkpoints.restore(5, params=state["params"])
    assert checkpoints.steps() == [5]
    assert np.array_equal(items["params"]["w"], np.ones(3))
