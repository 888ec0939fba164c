"""Every task of configs/, as a user trains it: devices, processes, kills, memory."""

import json
import os
import signal
import struct
import sys
from dataclasses import replace
from itertools import product
from typing import get_args

import numpy as np
import pytest

import idx_files
import together
from cases import relative_error
from hfdist import UsageError
from hfdist.runs.config import load
from hfdist.runs.resume import restore_params
from hfdist.runs.train import train
from hfdist.sharing import Sharding
from test_processes import ends, free_port
from test_processes import start as start_one
from test_resume import SGD, finish, kill, start, wait_for_step
from together import ROOT, train_losses
from toolkit.recorded import story

CG = "--method.cg.max-steps 3 --method.cg.rtol 0"
# What is needed for the losses to be comparable, and soon there.
TASKS = {
    "paper/hf_gauss_newton": CG,
    "mnist/autoencoder": f"{CG} --batch-size 64 --model.encoder 100 30",
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
    "text/gpt2": (
        f"{CG} --data.dir {{tokens}} --data.context 16 --data.vocabulary 60 "
        "--model.layers 2 --model.heads 2 --model.width 16 --batch-size 8 "
        "--micro-batch-size None"
    ),
    "table/diabetes": "--data.test-fraction 0.25 --batch-size 332",
    "physics/poisson": "--data.side 20 --batch-size 480",
    "physics/heat": "--data.interior 400 --data.boundary 80 --batch-size 480",
    "physics/burgers": "--data.interior 200 --data.boundary 56 --batch-size 256",
    "physics/poisson5": (
        "--data.interior 80 --data.boundary 16 --batch-size 96 --model.hidden 16 16"
    ),
}
SHORT = (
    "--dtype float64 --max-steps 4 --epochs 10 --steps-per-dispatch 1 "
    "--checkpoint-steps 1 --checkpoint-minutes 1e9 --evaluation-batch-size 200"
)
# Examples that a device takes at a time: of its share, a quarter of the batch.
MICRO = {
    "mnist/convnet": 2,
    "text/shakespeare": 1,
    "text/gpt2": 1,
    "table/diabetes": 83,
}
EXACT = [name for name in TASKS if "--method" not in TASKS[name]]
# In the place of a method that shares nothing out.
HESSIAN_FREE = """
import runpy
from dataclasses import replace
from hfdist import CG, HessianFree
method = HessianFree(damping=1.0, damping_rule="nielsen", cg=CG(max_steps=3, rtol=0.0))
config = replace(runpy.run_path({file!r})["config"], method=method)
"""
# Trains run after run. A process makes as many devices as its first run asks for.
PROGRAM = """
import json, sys
from pathlib import Path
import hfdist
from hfdist.runs.config import load
from hfdist.runs.train import train
with hfdist.joined():
    for file, *overrides in json.loads(sys.argv[1]):
        train(load(Path(file), overrides))
"""
# Processes, devices of each.
LAYOUTS = [(1, 4), (1, 2), (1, 1), (2, 2), (2, 1)]
each_task = pytest.mark.parametrize("name", TASKS)


@pytest.fixture
def arguments(name, tmp_path):
    """Of a run of four steps with the config's own method."""
    for file in ("train.bin", "val.bin"):
        (np.arange(2000) % 60).astype("<u2").tofile(tmp_path / file)
    return f"configs/{name}.py {TASKS[name]} {SHORT}".format(tokens=tmp_path).split()


@pytest.fixture
def iterative(name, arguments, tmp_path):
    """The same by Hessian-free, whose vectors and params may be shared out."""
    if name not in EXACT:
        return arguments
    config = tmp_path / "hessian_free.py"
    config.write_text(HESSIAN_FREE.format(file=str(ROOT / arguments[0])))
    return [config, *arguments[1:]]


def train_in(processes, runs):
    """Train all of the runs in so many real processes."""
    port, each = free_port(), json.dumps([list(map(str, run)) for run in runs])
    together = [
        start_one(k, [each], port, processes, ("-c", PROGRAM)) for k in range(processes)
    ]
    codes, outputs = ends(together, within=600)
    assert codes == [0] * processes, outputs


def outcome(run):
    """(the loss of every step, the params at the end)."""
    file, *overrides = map(str, run)
    config = load(ROOT / file, overrides)
    _, params = restore_params(config.run_dir, config.build_problem()[1])
    return train_losses(config.run_dir), params


def check_layouts(folder, arguments, shardings, micro=1):
    """One device takes the steps of many, however they share."""
    runs = {}
    for (processes, devices), sharding in product(LAYOUTS, shardings):
        run = [*arguments, "--devices", devices, "--sharding", sharding]
        run += ["--micro-batch-size", micro] if sharding == "vectors" else []
        name = f"{sharding} over {processes} x {devices}"
        runs.setdefault(processes, {})[name] = [*run, "--run-dir", folder / name]
    for processes, some in runs.items():
        train_in(processes, some.values())
    losses, params = outcome(runs[1]["replicated over 1 x 1"])
    assert len(losses) == 4
    assert losses[3] < losses[0]
    for name, run in (runs[1] | runs[2]).items():
        found = outcome(run)
        assert found[0] == pytest.approx(losses, rel=1e-10), name
        assert relative_error(found[1], params) < 1e-10, name


@pytest.mark.slow
@each_task
def test_devices_and_processes_take_the_same_steps(name, iterative, tmp_path):
    check_layouts(tmp_path, iterative, get_args(Sharding), MICRO.get(name, 4))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_devices_and_processes_solve_exactly_alike(arguments, tmp_path):
    check_layouts(tmp_path, arguments, ["replicated"])


# Processes, devices of each, sharding: from each sharding to each other one.
WAY = [
    (2, 2, "params"),
    (1, 4, "vectors"),
    (2, 1, "replicated"),
    (1, 2, "params"),
    (1, 1, "replicated"),
    (2, 2, "vectors"),
    (1, 4, "params"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["physics/burgers", "text/gpt2"])
def test_a_run_goes_on_over_devices_that_share_otherwise(iterative, tmp_path):
    one, many = ([*iterative, "--run-dir", tmp_path / k] for k in ("one", "many"))
    one += ["--max-steps", len(WAY)]
    train_in(1, [one])
    for count, (processes, devices, sharding) in enumerate(WAY, 1):
        layout = ["--devices", devices, "--sharding", sharding]
        train_in(processes, [[*many, *layout, "--max-steps", count]])
    losses, params = outcome(one)
    found = outcome(many)
    assert len(losses) == len(WAY)
    assert found[0] == pytest.approx(losses, rel=1e-9)
    assert relative_error(found[1], params) < 1e-9


@pytest.mark.slow
@each_task
def test_a_run_that_was_killed_equals_one_that_was_not(arguments, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start([*arguments, "--run-dir", killed])
    wait_for_step(killed, 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for run_dir in (killed, whole):
        code, output = finish([*arguments, "--run-dir", run_dir])
        assert code == 0, output
    assert story(killed) == story(whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist/wide_kronecker"])
@pytest.mark.parametrize("sharding", ["vectors", "params"])
def test_a_run_that_was_killed_goes_on_sharing(arguments, sharding, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    arguments += ["--sharding", sharding, "--micro-batch-size", "4"]
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
