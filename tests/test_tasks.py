"""Every task of configs/, as a user trains it: devices, processes, kills, memory."""

import os
import signal
import struct
import sys
from dataclasses import replace

import numpy as np
import pytest

import idx_files
import together
from hfdist import UsageError
from hfdist.runs.config import load
from hfdist.runs.train import train
from test_resume import SGD, finish, kill, start, wait_for_step
from together import ROOT, train_losses
from toolkit.recorded import story

CG = "--method.cg.max-steps 3 --method.cg.rtol 0"
# What is needed for the losses to be comparable, and soon there.
TASKS = {
    "paper/hf_gauss_newton": CG,
    "mnist/autoencoder": f"{CG} --batch-size 64",
    "mnist/convnet": f"{CG} --batch-size 16",
    "mnist/wide": CG,
    # Every piece of Hessian-free at once.
    "mnist/wide_kronecker": (
        "--method.damping 1 --method.damping-rule next_batch --method.warm-start 0.9 "
        "--method.cg.max-steps 8 --method.cg.rtol 0 --method.cg.progress 1e-4 "
        "--method.cg.stored 2 --curvature-fraction 0.5 --batch-size 64 "
        "--batch-growth 2 128"
    ),
    "text/shakespeare": f"{CG} --batch-size 4 --model.layers 2",
    "table/diabetes": "",
    "physics/poisson": "",
    "physics/heat": "--method.scaled-damping",
    "physics/burgers": "--data.interior 200 --data.boundary 60 --batch-size 260",
    "physics/poisson5": (
        "--data.interior 80 --data.boundary 20 --batch-size 100 --model.hidden 16 16"
    ),
}
WHOLE = {"table/diabetes": 356}  # of 354 rows, so that four devices share them
SHORT = (
    "--dtype float64 --max-steps 4 --epochs 10 --steps-per-dispatch 1 "
    "--checkpoint-steps 1 --checkpoint-minutes 1e9 --evaluation-batch-size 200"
)
MICRO = {"mnist/convnet": 2, "text/shakespeare": 1}  # of a device's few examples
each_task = pytest.mark.parametrize("name", TASKS)


def shared(name):
    """Vectors shared out, and micro-batches, where the method has CG's vectors."""
    if "--method.cg" not in TASKS[name]:
        return None
    return ["--sharding", "vectors", "--micro-batch-size", MICRO.get(name, 4)]


def command(name):
    return f"configs/{name}.py {TASKS[name]} {SHORT}".split()


@pytest.mark.slow
@each_task
def test_devices_and_processes_take_the_same_steps(name, tmp_path):
    arguments = command(name)
    four = ["--devices", 4]
    if name in WHOLE:
        four += ["--batch-size", WHOLE[name]]
    kinds = [("1", [], 1), ("4", four, 1), ("2 x 1", [], 2)]
    if shares := shared(name):
        kinds += [("4 that share", four + shares, 1), ("2 x 1 that share", shares, 2)]
        parts = ["--sharding", "params"]
        kinds += [("4 with parts", four + parts, 1), ("2 x 1 with parts", parts, 2)]
    losses = {}
    for kind, more, processes in kinds:
        run = [*arguments, *more, "--run-dir", tmp_path / kind]
        code, output = finish(run, processes)
        assert code == 0, output
        losses[kind] = train_losses(tmp_path / kind)
    assert len(losses["1"]) == 4
    assert losses["1"][3] < losses["1"][0]
    for kind, *_ in kinds[1:]:
        assert losses[kind] == pytest.approx(losses["1"], rel=1e-9), kind


@pytest.mark.slow
@each_task
def test_a_run_that_was_killed_equals_one_that_was_not(name, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start([*command(name), "--run-dir", killed])
    wait_for_step(killed, 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for run_dir in (killed, whole):
        code, output = finish([*command(name), "--run-dir", run_dir])
        assert code == 0, output
    assert story(killed) == story(whole)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_sharing(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    arguments = [*command("mnist/wide_kronecker"), *shared("mnist/wide_kronecker")]
    process = start([*arguments, "--run-dir", killed], processes=2)
    wait_for_step(killed, 2)
    kill(process)
    for run_dir in (killed, whole):
        code, output = finish([*arguments, "--run-dir", run_dir], processes=2)
        assert code == 0, output
    assert story(killed) == story(whole)


def test_a_batch_may_be_padded_to_be_shared(tmp_path):
    """354 rows over four devices: the last two of 356 have weight 0."""
    config = replace(load(ROOT / "configs/table/diabetes.py"), max_steps=2)
    one = replace(config, run_dir=tmp_path / "1")
    four = replace(config, devices=4, batch_size=356, run_dir=tmp_path / "4")
    for run in (one, four):
        train(run)
    losses = [train_losses(run.run_dir) for run in (one, four)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with pytest.raises(UsageError, match="only 354 examples"):
        train(replace(one, batch_size=356))


IMAGES = 4_000_000  # of 28 x 28 pixels: 3.1 GB
KILOBYTES = 2_000_000  # of data that the process may hold, files that are mapped apart


@pytest.mark.slow
def test_a_data_set_larger_than_memory_trains(tmp_path):
    """A file that is mapped, in a process that may hold less."""
    folder = idx_files.make_folder(tmp_path)
    for path in folder.iterdir():
        path.unlink()
    for stem, count in (("train", IMAGES), ("t10k", 1000)):
        images = folder / f"{stem}-images-idx3-ubyte"
        images.write_bytes(bytes((0, 0, 8, 3)) + struct.pack(">3I", count, 28, 28))
        os.truncate(images, 16 + count * 784)  # zeros that take no disk
        head = bytes((0, 0, 8, 1)) + struct.pack(">I", count)
        labels = (np.arange(count) % 10).astype(np.uint8).tobytes()
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(head + labels)
    run = f"--data.dir {folder} --max-steps 200 --run-dir {tmp_path}/run"
    process = together.start(
        *("bash", "-c"),
        f"ulimit -d {KILOBYTES}; {sys.executable} -m hfdist train {SGD} {run}",
    )
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert len(train_losses(tmp_path / "run")) == 200
