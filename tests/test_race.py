"""The race of optimisers: its clock, its readings, its choice of a grid, its files."""

import csv
import json
import math
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bench
import hfdist
import idx_files
from cases import network
from hfdist.choices import choices, chosen
from hfdist.methods.method import make_step
from hfdist.models.mlp import MLP
from hfdist.quadratics import value_and_gradient
from hfdist.runs.config import Config
from hfdist.tasks.idx import IDX
from racing import loop, problems, standings
from racing.contest import (
    Contest,
    Contestant,
    Entrant,
    first_order,
    untuned,
)
from racing.lbfgs import LBFGS
from racing.loop import Limits, Mark
from racing.operations import counted
from racing.peaks import Peaks, Spectrum
from racing.problems import nonlinear, wide
from racing.reading import best, reached, value_at


def marks(losses, seconds=1.0):
    """A run evaluated every so many seconds, of 10 steps and 30 gradients each."""
    return [
        Mark(seconds * i, 10 * i, 30.0 * i, loss, {"accuracy": 1 - loss})
        for i, loss in enumerate(losses)
    ]


DECAY = marks(np.exp(-np.arange(5.0)))


@pytest.mark.parametrize("at", [0.0, 0.25, 1.5, 4.0])
def test_an_exponential_decay_is_read_where_it_is_between_its_marks(at):
    read = reached(DECAY, "loss", math.exp(-at))
    assert read == pytest.approx((at, 10 * at, 30 * at))
    assert value_at(DECAY, "loss", at) == pytest.approx(math.exp(-at))


def test_what_is_not_reached_or_not_run_has_no_reading():
    assert reached(DECAY, "loss", math.exp(-4.1)) is None
    assert value_at(DECAY, "loss", 4.1) is None


def test_the_first_crossing_counts_and_a_value_that_is_no_number_is_not_one():
    up_and_down = marks([4.0, math.nan, 2.0, 1.0, 3.0, 0.5])
    assert reached(up_and_down, "loss", 2.0).seconds == 2
    assert reached(up_and_down, "loss", math.sqrt(2)).seconds == pytest.approx(2.5)
    assert reached(marks([1.0, 0.0]), "loss", 0.5).seconds == 1
    assert reached(DECAY, "accuracy", 0.0).seconds == 0


def entrant(settings, method=None, batch_size=16, fixed=False):
    return Entrant(method or hfdist.SGD(), batch_size, settings, fixed)


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [((0.5,), "fast"), ((0.5, 0.1), "far"), ((0.5, 0.01), "fast"), ((), "far")],
)
def test_the_grid_is_judged_at_the_hardest_target_that_one_of_it_reached(
    targets, wanted
):
    trials = [
        (entrant("diverges"), marks([2.0, math.nan])),
        (entrant("fast"), marks([2.0, 0.3, 0.3, 0.3])),
        (entrant("far"), marks([2.0, 1.0, 0.4, 0.1])),
    ]
    assert best(trials, "loss", targets).settings == wanted


def product(a, b):
    return a @ b


A, B = np.ones((3, 5)), np.ones((5, 7))


def test_operations_of_a_scan_count_for_each_row():
    once = 2 * 3 * 5 * 7
    assert float(jax.jit(counted(product))(A, B)[1]) == once

    def scanned(a):
        return jax.lax.scan(lambda c, b: (c, c @ b), a, jnp.stack([B] * 4))

    (_, rows), operations = counted(scanned)(A)
    assert operations == 4 * once
    np.testing.assert_array_equal(rows, np.full((4, 3, 7), 5.0))


@pytest.mark.parametrize("times", [0, 1, 3])
def test_a_loop_and_a_branch_count_as_they_run(times):
    square = np.full((6, 6), 0.1)

    def run(times):
        def body(i, x):
            x = x @ square
            return jax.lax.cond(i == 1, lambda x: x @ square, lambda x: x, x)

        return jax.lax.fori_loop(0, times, body, square)

    result, operations = jax.jit(counted(run))(times)
    products = times + (times > 1)
    assert operations == products * 2 * 6**3
    wanted = np.linalg.matrix_power(square, products + 1)
    np.testing.assert_allclose(result, wanted)


def test_a_cholesky_solve_is_counted():
    matrix = np.eye(6) + 1

    def solve(a, b):
        factor = jnp.linalg.cholesky(a)
        return jax.scipy.linalg.cho_solve((factor, True), b)

    x, operations = counted(solve)(matrix, np.ones((6, 2)))
    np.testing.assert_allclose(matrix @ x, np.ones((6, 2)))
    assert operations == pytest.approx(6**3 / 3 + 2 * 2 * 6**2)


def test_what_has_no_count_makes_it_unknown():
    values, operations = counted(lambda a: jnp.linalg.eigvalsh(a @ a))(np.eye(3))
    np.testing.assert_allclose(values, 1)
    assert math.isnan(operations)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_step_costs_its_gradient_and_a_product_for_each_cg_step(steps):
    problem, params, batch = network(inputs=20, outputs=4, examples=512, seed=0)
    method = hfdist.HessianFree(
        damping=1.0, input_reduction=False, cg=hfdist.CG(max_steps=steps, rtol=0.0)
    )
    optimizer = method.build(problem)
    carry = params, optimizer.init(params)
    _, operations = jax.jit(counted(make_step(optimizer)))(carry, batch)
    first, second = 2 * 512 * 20 * 6, 2 * 512 * 6 * 4
    gradient = 2 * first + 3 * second
    descent = jax.jit(counted(lambda p: value_and_gradient(problem, p, batch)))
    assert descent(params)[1] == gradient
    # J v: of the first layer one product, of the second two; as many for Jᵀ u. CG's
    # inner products are the rest.
    wanted = gradient + steps * (2 * first + 4 * second)
    assert operations == pytest.approx(wanted, rel=0.01)
    assert operations > wanted


def test_lbfgs_comes_to_the_least_squares_solution():
    rng = np.random.default_rng(0)
    batch = {"inputs": rng.normal(size=(50, 8)), "targets": rng.normal(size=(50, 1))}
    wanted = np.linalg.lstsq(batch["inputs"], batch["targets"])[0]
    problem = hfdist.Problem(lambda w, b: b["inputs"] @ w, hfdist.losses.squared_error)
    optimizer = LBFGS().build(problem)
    params = jnp.zeros((8, 1))
    carry = params, optimizer.init(params)
    step = jax.jit(make_step(optimizer))
    for _ in range(30):
        carry, info = step(carry, batch)
    np.testing.assert_allclose(carry[0], wanted, atol=1e-7)
    residual = batch["inputs"] @ wanted - batch["targets"]
    assert info.loss == pytest.approx(np.mean(residual**2))


class Clock:
    """A second passes from one reading to the next, however long that takes."""

    now = 0.0

    def perf_counter(self):
        self.now += 1
        return self.now

    def delaying(self, function):
        """The function, in which much time passes."""

        def slow(*args):
            self.now += 1000
            return function(*args)

        return slow


@pytest.fixture
def clock(monkeypatch):
    """By which every scan takes a second."""
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    return clock


@pytest.fixture
def contest(tmp_path, clock):
    """A small one."""
    config = Config(
        method=hfdist.HessianFree(),
        model=MLP(hidden=(5,)),
        data=IDX(dir=idx_files.make_folder(tmp_path / "data"), classes=3),
        batch_size=32,
    )
    return Contest(
        config=config,
        contestants=(
            untuned(config),
            first_order("SGD", hfdist.SGD, (1e-6, 0.5), (16,)),
            Contestant(
                "L-BFGS", (entrant("one batch of 50", LBFGS(), 50, True),), True
            ),
        ),
        quantity="loss",
        targets=(1.0,),
        seconds=12.0,
        grid_seconds=6.0,
        spacing=1.3,
    )


def test_every_run_starts_from_the_same_params_and_is_given_the_same_seconds(contest):
    ground = loop.course(contest, seed=3)
    limits = Limits(contest.seconds, contest.spacing)
    runs = [loop.run(ground, one.grid[-1], limits) for one in contest.contestants]
    assert all(run[0] == runs[0][0] for run in runs)
    problem, params = ground.config.build_problem()
    batch = ground.examples.gather(np.arange(100)) | {"weights": np.ones(100)}
    batch = contest.config.data.prepare(batch, "float32")
    value, _ = value_and_gradient(problem, params, batch)
    assert runs[0][0].loss == pytest.approx(value.item(), rel=1e-5)
    assert [run[-1].seconds for run in runs] == [12.0] * 3


def test_for_a_figure_the_training_examples_are_not_evaluated(contest):
    ground = loop.course(contest._replace(quantity="accuracy"), seed=0)
    loss, figures = ground.measure(ground.config.build_problem()[1])
    assert math.isnan(loss)
    both = loop.course(contest, seed=0).measure(ground.config.build_problem()[1])
    assert figures == both[1]


def test_the_marks_are_spaced_and_at_the_times_asked_for(contest):
    ground = loop.course(contest, seed=0)
    sgd = contest.contestants[1].grid[1]
    limits = Limits(12.0, 2.0, times=(5.0,))
    run = loop.run(ground, sgd, limits)
    assert [mark.steps for mark in run] == [0, 1, 2, 4, 5, 10, 12]
    assert [mark.seconds for mark in run] == [0, 1, 2, 4, 5, 10, 12]
    assert [mark.gradients for mark in run] == [0, 1, 2, 4, 5, 10, 12]
    enough = limits._replace(enough=run[3].loss)
    assert len(loop.run(ground, sgd, enough)) == 4


def test_neither_compiling_nor_evaluating_is_on_the_clock(contest, clock, monkeypatch):
    monkeypatch.setattr(loop, "make_scan", clock.delaying(loop.make_scan))
    ground = loop.course(contest, seed=0)
    ground = ground._replace(measure=clock.delaying(ground.measure))
    run = loop.run(ground, contest.contestants[1].grid[0], Limits(4.0, 1.1))
    assert [mark.seconds for mark in run] == [0, 1, 2, 3, 4]
    assert clock.now > 5000


def test_a_fixed_batch_is_the_first_one_in_every_step(contest):
    ground = loop.course(contest, seed=0)
    fixed = entrant("", hfdist.SGD(learning_rate=0.5), 16, fixed=True)
    (*_, end) = loop.run(ground, fixed, Limits(4.0, 2.0))
    problem, params = ground.config.build_problem()
    source = loop.GlobalBatches(ground.examples, 16, 0)
    batch = jax.tree.map(lambda a: a[0], source.chunk(0, 1))
    batch = contest.config.data.prepare(batch, "float32")
    for _ in range(4):
        _, gradient = value_and_gradient(problem, params, batch)
        params = jax.tree.map(lambda w, g: w - 0.5 * g, params, gradient)
    assert end.loss == pytest.approx(ground.measure(params)[0], rel=1e-5)


def test_the_table_has_ratios_to_the_best_first_order_one():
    names = (("HF", False), ("SGD", True), ("Adam", True))
    curves = [[4.0, 1.0], [4.0, 2.0, 1.0], [4.0, 4.0]]
    runs = [
        standings.Run(Contestant(name, (1, 2), first), entrant("so"), marks(curve), 160)
        for (name, first), curve in zip(names, curves, strict=True)
    ]
    made = Contest(None, (), "loss", 1.0, 1.0, 1.1, targets=(2.0,), times=(1.0,))
    settings, to_target, at_times = standings.tables(made, runs)
    assert settings.rows[1] == ["SGD", "so", 2]
    assert to_target.title == "to a training loss of 2"
    assert to_target.header == ["", "seconds", "steps", "gradients", "× best"]
    assert to_target.rows == [
        ["HF", 0.5, 5, 15.0, 0.5],
        ["SGD", 1.0, 10, 30.0, 1.0],
        ["Adam", None, None, None, None],
    ]
    assert at_times.header == ["", "after 1 s", "× best"]
    assert at_times.rows == [["HF", 1.0, 0.5], ["SGD", 2.0, 1.0], ["Adam", 4.0, 2.0]]


def race(monkeypatch, contest, *arguments):
    monkeypatch.setattr(wide, "wide", lambda: contest)
    monkeypatch.setattr(sys, "argv", ["bench", "race", *map(str, arguments)])
    return bench.main()


def test_a_race_writes_a_table_a_csv_and_a_figure(
    contest, monkeypatch, tmp_path, capsys
):
    out = tmp_path / "out"
    options = ("--problem", "wide", "--contestants", "SGD", "--out", out)
    assert race(monkeypatch, contest, *options) == 0
    said = capsys.readouterr()
    assert "│ SGD │ α 0.5, batch 16 │       2 │" in said.out
    assert said.err.count("grid: SGD") == 2
    assert {path.name for path in out.iterdir()} == {
        f"race-wide.{kind}" for kind in ("csv", "png", "svg")
    }
    with (out / "race-wide.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == [
        *("part", "contestant", "settings", "seconds", "steps", "epochs"),
        *("gradient_equivalents", "gradient_passes", "loss", "test_accuracy"),
    ]
    sgd = [line for line in lines if line["contestant"] == "SGD"]
    assert {(line["part"], line["settings"]) for line in sgd} == {
        ("race", "α 0.5, batch 16"),
        ("grid", "α 0.5, batch 16"),
        ("grid", "α 1e-06, batch 16"),
    }
    end = [line for line in sgd if line["part"] == "race"][-1]
    assert float(end["epochs"]) == pytest.approx(12 * 16 / 100)
    assert float(end["gradient_passes"]) == pytest.approx(12 * 16 / 100)


def test_json_is_a_list_of_figures_of_the_contestants_named(
    contest, monkeypatch, tmp_path, capsys
):
    options = ("--contestants", "HF-untuned", "--seconds", "2", "--out", tmp_path)
    assert race(monkeypatch, contest, "--problem", "wide", *options, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in said] == [
        f"HF-untuned: {what} to 1" for what in ("time", "steps", "cost")
    ]
    assert all(one.keys() == {"name", "value", "limit", "unit"} for one in said)


@pytest.mark.parametrize(("seconds", "read"), [("5", "2"), ("2", "2"), ("1", "1")])
def test_a_shorter_race_is_read_at_the_times_in_it_or_at_its_end(
    seconds, read, contest, monkeypatch, tmp_path, capsys
):
    timed = contest._replace(times=(2.0, 9.0), targets=(), quantity="accuracy")
    options = ("--contestants", "HF-untuned", "--seconds", seconds, "--out", tmp_path)
    assert race(monkeypatch, timed, "--problem", "wide", *options, "--json") == 0
    (said,) = json.loads(capsys.readouterr().out)
    assert said["name"] == f"HF-untuned: accuracy after {read} s"
    assert 0 <= said["value"] <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--problem", "wode"), "bench: --problem is 'wode': use one of autoencoder"),
        (("--problem", "wide", "--seconds", "0"), "use a number of seconds above 0"),
        (("--problem", "wide", "--grid-seconds", "nan"), "--grid-seconds is nan: use"),
        (("--problem", "wide", "--contestants", "Adam"), "use one of HF-untuned, SGD"),
        (("--problem", "wide", "--out", __file__), "cannot be a folder"),
    ],
)
def test_a_mistake_is_one_message(arguments, said, contest, monkeypatch, capsys):
    assert race(monkeypatch, contest, *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_options_of_a_race_are_for_a_race(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "step", "--problem", "wide"])
    with pytest.raises(SystemExit) as error:
        bench.main()
    assert error.value.code == 2
    assert "--problem" in capsys.readouterr().err


@pytest.mark.parametrize("name", choices(problems))
def test_every_problem_has_its_contestants_and_something_to_reach(name):
    made = chosen("--problem", name, problems)()
    names = [one.name for one in made.contestants]
    if name in ("wide", "baseline", "autoencoder"):
        assert names == ["HF-untuned", "HF-tuned", "SGD", "Nesterov", "Adam", "L-BFGS"]
        assert all(len(one.grid) > 1 for one in made.contestants if one.first_order)
    assert made.contestants[0].grid[0].method == made.config.method
    assert len(set(names)) == len(names) > 1
    assert made.targets or made.times
    assert list(made.targets) == sorted(made.targets, reverse=True)
    assert max(made.times, default=0) <= made.seconds


SPECTRUM = Spectrum(peaks=4, points=80)


@pytest.mark.slow
def test_the_best_fit_of_the_peaks_is_the_one_that_is_said():
    """By JAX's derivatives: no slope there, and curved upwards."""
    problem, params = SPECTRUM.problem(Peaks(count=4), 0)
    truth = dict(zip(("heights", "centres", "widths"), SPECTRUM.truth(), strict=True))
    flat, unravel = ravel_pytree(truth)
    assert jax.tree.structure(params) == jax.tree.structure(truth)
    examples = SPECTRUM.examples("train")
    batch = examples.gather(np.arange(len(examples)))

    def f(w):
        return jnp.sum(problem.loss(problem.predict(unravel(w), batch), batch))

    assert f(flat) > 1e-5
    np.testing.assert_allclose(jax.grad(f)(flat), 0, atol=1e-12)
    assert jnp.linalg.eigvalsh(jax.hessian(f)(flat)).min() > 0


def test_an_entrant_may_have_the_task_in_another_form(clock):
    """Newton comes to the best fit; a gradient is that of the others' form."""
    made = nonlinear.nonlinear()
    small = replace(made.config, model=Peaks(count=4), batch_size=80)
    small = replace(small, data=replace(SPECTRUM, jacobian=False))
    ground = loop.course(made._replace(config=small), seed=0)
    entrants = {one.name: one.grid[0] for one in made.contestants}
    newton = entrants["Newton"]._replace(batch_size=80, data=SPECTRUM)
    *_, end = loop.run(ground, newton, Limits(60.0, 2.0))
    assert end.figures["relative_error"] < 1e-12
    adam = entrants["Adam"]._replace(batch_size=80)
    *_, end = loop.run(ground, adam, Limits(3.0, 2.0))
    assert end.gradients == end.steps == 3
