"""The picture of a solution: what it is of, and that it is drawn."""

import json
import sys

import numpy as np
import pytest

import hfdist
import solution
from hfdist.models.mlp import MLP
from hfdist.runs.config import Config
from hfdist.runs.evaluate import evaluate
from hfdist.runs.train import train
from hfdist.tasks.burgers import Burgers
from hfdist.tasks.poisson import Poisson
from hfdist.tasks.poisson_cube import PoissonCube
from test_plot import make_run


def test_a_plane_lies_through_the_centre_and_knows_its_axes():
    def predict(params, batch):
        return params * batch["inputs"].sum(-1)

    problem = hfdist.Problem(predict, hfdist.losses.squared_error)
    plane = solution.plane_of(PoissonCube(axes=3), problem, 1.5)
    assert (plane.first[0], plane.second[-1]) == (0, 1)
    first, second = plane.first[30], plane.second[160]
    assert plane.u[160, 30] == pytest.approx(1.5 * (first + second + 0.5))
    wanted = np.cos(np.pi * first) + np.cos(np.pi * second)
    assert plane.solution[160, 30] == pytest.approx(wanted)
    assert plane.names == ("x_1", "x_2")
    assert Burgers().coordinates == ("t", "x")


def draw(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["solution", *map(str, arguments)])
    return solution.main()


@pytest.mark.slow
def test_the_error_that_is_drawn_is_that_of_the_evaluation(
    tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    config = Config(
        method=hfdist.SGD(),
        model=MLP(hidden=(4,), activation="tanh"),
        data=Poisson(side=4, test_side=solution.SIDE),
        batch_size=32,
        epochs=1,
        run_dir=run,
        compilation_cache=None,
    )
    train(config)
    capsys.readouterr()
    assert draw(monkeypatch, run, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    _, found = evaluate(run)
    error = found.figures["relative_error"]
    assert said["relative_error"] == pytest.approx(error, rel=1e-5)
    assert said["figures"] == [str(run / f"solution.{kind}") for kind in ("png", "svg")]
    assert (run / "solution.svg").read_text().rstrip().endswith("</svg>")


def test_a_run_of_no_equation_is_refused(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", hfdist.SGD(), [1.0])
    assert draw(monkeypatch, run) == 2
    error = capsys.readouterr().err
    assert "is no run of an equation in two dimensions or more: give" in error
    assert error.count("\n") == 1
