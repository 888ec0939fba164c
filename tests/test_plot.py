"""The plotting tool: what it reads off runs, counts and draws."""

import json
import math
import os
import shutil
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

import hfdist
import idx_files
import plot
from drawings import style
from hfdist.errors import UsageError
from hfdist.models.mlp import MLP
from hfdist.runs import metrics
from hfdist.runs.config import Config, to_json
from hfdist.tasks.idx import IDX
from toolkit import recorded

HF = hfdist.HessianFree(damping=4.0)


def make_run(folder, method, losses, cg_steps=3, rho=math.nan, **settings):
    """A run directory as the trainer writes it, an evaluation at its end."""
    folder.mkdir(parents=True)
    config = Config(method=method, **settings)
    (folder / "config.json").write_text(json.dumps({"config": to_json(config)}))
    first_order = isinstance(method, hfdist.SGD)
    lines = []
    for step, loss in enumerate(losses, 1):
        line = {"split": "train", "step": step, "epoch": 1, "loss": loss}
        line |= {"seconds": 0.1 * step, "damping": 0.0 if first_order else 4.0}
        line |= {"rho": rho, "cg_steps": 0 if first_order else cg_steps}
        line |= {"step_norm": 0.5, "accepted": math.isfinite(loss), "indefinite": False}
        lines.append(line)
    if lines:
        last = {"step": len(losses), "epoch": 1, "seconds": 0.1 * len(losses)}
        lines.append({"split": "test", "loss": losses[-1], "accuracy": 0.5, **last})
    text = "".join(metrics.encode(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def run_plot(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["plot", *map(str, arguments)])
    return plot.main()


def drawn(*folders):
    """Each panel's (y label, x label) and its curves, and the figure."""
    named = {str(f): plot.with_cost(recorded.read(f)) for f in folders}
    figure = plot.draw(named)
    panels = {(a.get_ylabel(), a.get_xlabel()): a.get_lines() for a in figure.axes}
    return panels, figure


@pytest.mark.parametrize(
    ("method", "forward_passes"),
    [
        (hfdist.SGD(), 3),
        (HF, 3 + 3 * 4),
        (hfdist.HessianFree(damping=4.0, curvature="hessian"), 3 + 3 * 6),
        # L + 1 of L = 2 layers.
        (
            hfdist.HessianFree(damping=4.0, curvature="layerwise_gauss_newton"),
            3 + 3 * 3,
        ),
        (hfdist.HessianFree(damping=4.0, curvature="finite_difference"), 3 + 3 * 3),
        (hfdist.HessianFree(damping=4.0, warm_start=0.9), 3 + 4 * 4),
        (hfdist.HessianFree(damping_rule="levenberg_marquardt"), 3 + 3 * 4 + 1),
    ],
)
def test_cost_counts_forward_passes(tmp_path, method, forward_passes):
    run = recorded.read(make_run(tmp_path / "run", method, [1.0, 1.0]))
    one, two = recorded.gradient_equivalents(run)
    assert one == pytest.approx(forward_passes / 3)
    assert two == pytest.approx(2 * one)


def test_an_exact_solve_costs_a_product_for_each_parameter(tmp_path):
    data = IDX(dir=idx_files.make_folder(tmp_path / "data"), classes=3)
    settings = {"data": data, "model": MLP(hidden=(4,))}
    run = make_run(tmp_path / "run", hfdist.Newton(damping=1.0), [1.0], **settings)
    parameters = 16 * 4 + 4 + 4 * 3 + 3
    (cost,) = recorded.gradient_equivalents(recorded.read(run))
    assert cost == pytest.approx(1 + 2 * parameters)


def test_running_median_against_windows_written_out():
    values = np.random.default_rng(0).normal(size=200)  # a window of 2 · 2 + 1
    smooth = style.running_median(values)
    assert smooth[0] == values[0]
    assert smooth[-1] == sorted(values[-3:])[1]
    assert smooth[1] == sorted(values[:3])[1]
    assert smooth[100] == sorted(values[98:103])[2]


def test_curves_are_the_runs_numbers_and_no_panel_is_empty(tmp_path):
    losses = [2.0, 1.0, 0.5]
    panels, _ = drawn(
        make_run(tmp_path / "sgd", hfdist.SGD(), losses),
        make_run(tmp_path / "hf", HF, losses),
    )
    labels = [y for y, _ in panels]
    assert labels.count("training loss") == labels.count("test accuracy") == 3
    assert "reduction ratio ρ" not in labels
    faint_sgd, bold_sgd, *_ = panels["training loss", "seconds of training"]
    for curve in (faint_sgd, bold_sgd):
        np.testing.assert_allclose(curve.get_xdata(), [0.1, 0.2, 0.3])
        np.testing.assert_allclose(curve.get_ydata(), losses)
    (_, costs) = panels["training loss", plot.AXES["cost"]][1::2]
    np.testing.assert_allclose(costs.get_xdata(), [5, 10, 15])
    assert len(panels["CG steps", "step"]) == 2  # faint and bold, of one run
    assert len(panels["norm of the step", "step"]) == 4


def test_first_order_runs_alone_have_no_curvature_panels(tmp_path):
    panels, _ = drawn(make_run(tmp_path / "sgd", hfdist.SGD(), [1.0]))
    assert {y for y, _ in panels} == {
        "training loss",
        "test accuracy",
        "norm of the step",
    }


def test_values_that_are_not_finite_are_left_out(tmp_path):
    losses = [1.0, math.nan, math.inf, 0.5]
    panels, _ = drawn(make_run(tmp_path / "run", HF, losses, rho=-math.inf))
    _, bold = panels["training loss", "step"]
    np.testing.assert_array_equal(bold.get_xdata(), [1, 4])
    np.testing.assert_array_equal(bold.get_ydata(), [1.0, 0.5])
    assert "reduction ratio ρ" not in {y for y, _ in panels}


def test_a_run_without_any_finite_loss_has_no_panel_for_it(tmp_path):
    panels, _ = drawn(make_run(tmp_path / "run", HF, [math.nan, math.nan]))
    assert "training loss" not in {y for y, _ in panels}
    assert "CG steps" in {y for y, _ in panels}


def test_a_diverged_run_and_a_single_step_are_drawn_and_named(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(matplotlib.rcParams, "savefig.dpi", 50)
    bad = make_run(tmp_path / "bad", HF, [2.0] + [math.nan] * 3, max_rejected=3)
    single = make_run(tmp_path / "single", hfdist.SGD(), [2.25])
    assert run_plot(monkeypatch, bad, single, "--json", "--out", tmp_path / "x/p") == 0
    said = json.loads(capsys.readouterr().out)
    assert [run["diverged"] for run in said["runs"]] == [True, False]
    assert said["runs"][1]["training loss of the last epoch"] == 2.25
    assert said["runs"][1]["cost in gradients"] == 1
    png, svg = said["figures"]
    assert Path(svg).read_text().rstrip().endswith("</svg>")
    border = imread(png)[[0, -1]], imread(png)[:, [0, -1]]
    assert all((edge == 1).all() for edge in border), "something is clipped"
    _, figure = drawn(bad, single)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [f"{bad} (diverged)", str(single)]


def test_a_table_for_people(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(style, "save", lambda _, prefix: [Path(f"{prefix}.png")])
    run = make_run(tmp_path / "one", HF, [2.0, 1.0])
    assert run_plot(monkeypatch, run, "--out", tmp_path / "p") == 0
    out = capsys.readouterr().out
    assert "one" in out
    assert "1.5" in out  # the mean loss
    assert "p.png" in out


def test_runs_of_one_name_are_told_apart(tmp_path):
    assert plot.names([tmp_path / "a/run", tmp_path / "b/run"]) == ["a/run", "b/run"]


def changed(number, **values):
    """A function that changes a line of metrics.jsonl, or drops what is None."""

    def change(run):
        path = run / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        line = {k: v for k, v in (lines[number] | values).items() if v is not None}
        lines[number] = line
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return change


def written(text, name="metrics.jsonl"):
    return lambda run: (run / name).write_text(text)


def other(name, make):
    """A function that puts something else in a file's place."""

    def replace(run):
        (run / name).unlink()
        make(run / name)

    return replace


def method_changed(run):
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace("hfdist.methods", "mine"))


DAMAGES = [
    (shutil.rmtree, "is not a run directory"),
    (written("{", "config.json"), "is not a run directory"),
    (written("[]", "config.json"), "is not a run directory"),
    (written("{}", "config.json"), "its config is no hfdist.runs.config:Config"),
    (other("config.json", Path.mkdir), "is not a run directory"),
    (method_changed, "--config CONFIG.py"),
    (lambda run: (run / "metrics.jsonl").unlink(), "holds no step yet: let the run"),
    (written(""), "holds no step yet: let the run"),
    (written('{"split": "train"'), "holds no step yet: let the run"),
    (written("3\n"), "line 1 is no line of metrics; put the file back"),
    (written("{}\n"), "line 1 is no line of metrics; put the file back"),
    (other("metrics.jsonl", Path.mkdir), "cannot be read"),
    (other("metrics.jsonl", os.mkfifo), "cannot be read"),
    (changed(0, cg_steps="3"), "damaged: cg_steps of step 1 is no number; put the"),
    (changed(1, damping=None), "damping of step 2 is no number"),
    (changed(1, rho=[1]), "rho of step 2 is no number"),
    (changed(1, step_norm=10**400), "damaged: int too large"),
    (changed(0, loss="1.0"), "line 1 is no line of metrics"),
    (changed(2, accuracy="high"), "accuracy of step 2 is no number"),
    (changed(0, step=2), "its steps are not 1, 2 … 2; put the file back"),
    (changed(0, step="nan"), "its steps are not 1, 2 … 2"),
    (changed(2, step=3), "an evaluation is of a step that it has not"),
    (changed(1, seconds="inf"), "its seconds are not all 0 or more"),
    (changed(2, epoch=-1), "its epoch are not all 0 or more"),
]


@pytest.mark.parametrize(("damage", "complaint"), DAMAGES)
def test_a_damaged_run_is_one_line_and_exit_code_2(
    tmp_path, monkeypatch, capsys, damage, complaint
):
    run = make_run(tmp_path / "run", HF, [1.0, 0.5])
    damage(run)
    assert run_plot(monkeypatch, run, "--out", tmp_path / "p") == 2
    error = capsys.readouterr().err
    assert error.startswith("plot: ")
    assert str(run) in error
    assert complaint in error
    assert error.count("\n") == 1


def test_a_run_without_an_evaluation_is_drawn(tmp_path):
    run = make_run(tmp_path / "run", HF, [1.0])
    (line, _) = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(f"{line}\n")
    panels, _ = drawn(run)
    assert "test accuracy" not in {y for y, _ in panels}
    row = plot.summary("run", plot.with_cost(recorded.read(run)), ["accuracy"])
    assert row["test accuracy"] is None


OWN = """
from dataclasses import dataclass
import hfdist
@dataclass(frozen=True, kw_only=True)
class OwnToPlot(hfdist.SGD):
    pass
config = hfdist.runs.config.Config(method=OwnToPlot())
"""


def test_a_run_of_a_class_of_ones_own_needs_its_config(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(style, "save", lambda _, prefix: [prefix])
    (tmp_path / "own.py").write_text(OWN)
    run = make_run(tmp_path / "run", hfdist.SGD(), [1.0])
    text = (run / "config.json").read_text()
    own = text.replace("hfdist.methods.sgd:SGD", "<run_path>:OwnToPlot")
    (run / "config.json").write_text(own)
    assert run_plot(monkeypatch, run) == 2
    assert "class OwnToPlot" in capsys.readouterr().err
    assert run_plot(monkeypatch, run, "--config", tmp_path / "own.py") == 0
    assert run_plot(monkeypatch, run, "--config", tmp_path / "none.py") == 2
    assert "none.py does not exist" in capsys.readouterr().err


def test_folders_of_any_name_are_drawn_and_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(style, "save", lambda _, prefix: [prefix])
    names = ["a[/b]", "$\\frac$", ":smile:", "_under", "x*"]
    folders = [make_run(tmp_path / name, hfdist.SGD(), [1.0]) for name in names]
    assert run_plot(monkeypatch, *folders, "--out", "[/p]") == 0
    out = capsys.readouterr().out
    assert all(text in out for text in ["[/p]", *(f.name for f in folders)])
    figure = style.figure(3, 2)
    style.legend(figure, {name: style.look(i) for i, name in enumerate(names)})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    figure.savefig(tmp_path / "p.png")  # no formula, nor a mistake in one


@pytest.mark.parametrize(
    ("out", "complaint"),
    [
        *((folder, "is a folder: add a name") for folder in (".", "/", "..")),
        *((name, "another place") for name in ("file/p", "x" * 300)),
    ],
)
def test_a_place_where_nothing_can_be_written_is_named(
    out, complaint, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=complaint):
        style.save(style.figure(1, 1), Path(out))


def test_a_run_given_twice_is_refused(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", HF, [1.0])
    assert run_plot(monkeypatch, run, run) == 2
    assert "given twice" in capsys.readouterr().err
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert run_plot(monkeypatch, tmp_path / "loop") == 2
    assert "is not a run directory" in capsys.readouterr().err
