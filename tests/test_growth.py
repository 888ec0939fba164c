"""Runs whose batches grow, or whose products are over a share of them."""

import signal
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import idx_files
from hfdist import CG, SGD, HessianFree
from hfdist.models.mlp import MLP
from hfdist.runs.config import Config
from hfdist.runs.plan import batches_of
from hfdist.runs.train import train
from hfdist.tasks.idx import IDX
from test_resume import (
    HF,
    LM,
    finish,
    kill,
    kill_and_continue,
    start,
    wait_for_step,
)
from together import train_losses
from toolkit.recorded import story

# Of 88 examples; 3 batches of 8, 2 of 16 and 1 of 32 are a pass without padding.
GROWTH = ((3, 16), (5, 32))
SIZES = [8] * 3 + [16] * 2 + [32] * 4
EPOCHS = [1] * 6 + [2] * 3


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = idx_files.make_folder(tmp_path_factory.mktemp("small"), train=88)
    return Config(
        method=SGD(),
        model=MLP(hidden=(5,)),
        data=IDX(dir=folder, classes=3),
        batch_size=8,
        batch_growth=GROWTH,
        epochs=2,
        seed=5,
        dtype="float64",
        compilation_cache=None,
    )


def read_batches(config):
    """The examples of each update in the first pass, in the seed's order."""
    entries = config.data.examples("train").entries
    order = np.random.default_rng((5, 0)).permutation(88)
    for chosen in np.split(order, np.cumsum(SIZES[:5])):
        batch = {name: jnp.asarray(a[chosen]) for name, a in entries.items()}
        yield config.data.prepare(batch, "float64")


def losses_of_a_loop(config, every):
    """Those of updates whose products are over every so-manieth example."""
    problem, params = config.build_problem()
    optimizer = config.method.build(problem)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, batch):
        some = jax.tree.map(lambda a: a[::every], batch)
        updates, state = optimizer.update(
            None, state, params, batch=batch, curvature_batch=some
        )
        return optax.apply_updates(params, updates), state

    for batch in read_batches(config):
        params, state = step(params, state, batch)
        yield float(state.info.loss)


def test_the_products_are_over_every_fourth_example(small):
    entries = small.data.examples("train").entries
    read = {name: a[:8] for name, a in entries.items()} | {"weights": np.arange(8.0)}
    config = replace(small, method=HessianFree(), curvature_fraction=0.25)
    batch, some = batches_of(config, read)
    assert batch.keys() == some.keys()
    for name, array in batch.items():
        np.testing.assert_array_equal(some[name], array[jnp.array([0, 4])])
    assert batches_of(small, read)[1] is None


@pytest.mark.slow
def test_a_run_takes_the_steps_of_a_loop_over_the_same_examples(small, tmp_path):
    method = HessianFree(damping=0.5, cg=CG(max_steps=3, rtol=0.0))
    config = replace(small, method=method, curvature_fraction=0.25, epochs=1)
    train(replace(config, run_dir=tmp_path / "run"))
    expected = list(losses_of_a_loop(config, every=4))
    assert train_losses(tmp_path / "run") == pytest.approx(expected, rel=1e-10)
    assert len(expected) == 6


def test_a_run_that_stops_anywhere_goes_on_as_if_it_had_not(small, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(replace(small, run_dir=whole))
    for steps in (2, 4, None):
        train(replace(small, run_dir=parts, max_steps=steps))
    (lines, *saved), (continued, *saved_again) = story(whole), story(parts)
    assert saved == saved_again
    steps = [line for line in lines if line["split"] == "train"]
    assert steps == [line for line in continued if line["split"] == "train"]
    assert [line["batch_size"] for line in steps] == SIZES
    assert [line["epoch"] for line in steps] == EPOCHS
    assert [line["step"] for line in lines if line["split"] == "test"] == [6, 9]


def test_batches_that_do_not_grow_have_no_size_in_their_lines(small, tmp_path):
    train(replace(small, run_dir=tmp_path / "run", batch_growth=(), max_steps=1))
    assert "batch_size" not in story(tmp_path / "run")[0][0]


GROWS = (
    "--batch-size 16 --batch-growth 20 32 40 80 --curvature-fraction 0.25 --epochs 3"
)


@pytest.fixture
def growing(tmp_path):
    data = idx_files.make_folder(tmp_path / "data", train=1000)
    return [HF, "--data.dir", data, "--data.classes", "3", *GROWS.split()]


@pytest.mark.slow
def test_every_layout_takes_the_steps_of_one_device(growing, tmp_path):
    exact = ["--method.cg.max-steps", "3", "--dtype", "float64"]
    losses = {}
    for processes, devices in ((1, 1), (1, 4), (2, 1), (2, 2)):
        run_dir = tmp_path / f"{processes}x{devices}"
        layout = ["--devices", devices, "--run-dir", run_dir]
        code, output = finish([*growing, *exact, *layout], processes)
        assert code == 0, output
        losses[processes, devices] = train_losses(run_dir)
    expected = losses.pop((1, 1))
    assert len(expected) == 40 + 1 + 13 + 13  # changes within the first pass
    for found in losses.values():
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_about_each_change_equals_one_that_was_not(
    growing, tmp_path, processes
):
    saves = "--steps-per-dispatch 1 --checkpoint-steps 1 --max-rejected 9999"
    arguments = [*growing, *saves.split(), *LM.split()]
    for step in (18, 21, 38, 41):
        process = start([*arguments, "--run-dir", tmp_path / "run"], processes)
        wait_for_step(tmp_path / "run", step)
        kill(process)
        assert process.returncode == -signal.SIGKILL  # it was not done
    kill_and_continue(tmp_path, arguments, processes, kills=0, seed=0)
