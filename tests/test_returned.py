"""What a user's own task returns: right, or one message."""

import json
from dataclasses import dataclass

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfdist import SGD, Problem, losses
from hfdist.errors import UsageError
from hfdist.models.mlp import MLP
from hfdist.models.model import functional
from hfdist.runs import metrics
from hfdist.runs.config import Config
from hfdist.runs.train import train
from hfdist.tasks.examples import Arrays
from hfdist.tasks.task import Task

ROWS = 7  # in batches of 5: three are padding


def rows(n=ROWS):
    rng = np.random.default_rng(0)
    return {"inputs": rng.normal(size=(n, 3)), "targets": rng.normal(size=(n, 1))}


@dataclass(frozen=True, kw_only=True)
class Own(Task):
    """A task that is sound, for others to spoil."""

    def examples(self, split):
        return Arrays(rows())

    def problem(self, model, seed):
        predict, params = functional(model.build(3, 1, seed))
        return Problem(predict, losses.squared_error), params

    def figures(self, outputs, batch):
        return {"error": losses.squared_error(outputs, batch)}


def config(data, **settings):
    return Config(
        method=SGD(learning_rate=1e-3),
        model=MLP(hidden=(2,)),
        data=data,
        batch_size=5,
        epochs=1,
        evaluation_batch_size=4,
        compilation_cache=None,
        **settings,
    )


def spoilt(name, function):
    """A task with another function, which is given the sound one's value first."""

    def replaced(self, *arguments):
        return function(getattr(Own, name)(self, *arguments), *arguments)

    cls = type("Odd", (Own,), {"__module__": __name__, name: replaced})
    return dataclass(frozen=True, kw_only=True)(cls)()


MISTAKES = {
    "a column of figures": (
        spoilt("figures", lambda f, z, b: {"error": (z - b["targets"]) ** 2}),
        r"returned 'error' of shape \(4, 1\): return one number per example, shape \(4",
    ),
    "a mean": (
        spoilt("figures", lambda f, z, b: {"error": jnp.mean(z)}),
        r"Odd.figures returned 'error' of shape \(\)",
    ),
    "a constant": (spoilt("figures", lambda f, z, b: {"error": 3.0}), r"shape \(\)"),
    "figures in a list": (
        spoilt("figures", lambda f, z, b: [f["error"]]),
        "Odd.figures returned a list: return a dict of figures",
    ),
    "a complex figure": (
        spoilt("figures", lambda f, z, b: {"error": f["error"] + 1j}),
        "return reals",
    ),
    "a figure without a name": (
        spoilt("figures", lambda f, z, b: {1: f["error"]}),
        "has a figure named 1: name it by text",
    ),
    "a report that is none": (
        spoilt("report", lambda report, m: None),
        "Odd.report returned a NoneType: return a dict of numbers",
    ),
    "a word in the report": (
        spoilt("report", lambda report, m: {"error": "small"}),
        "Odd.report's 'error' is 'small': return a number",
    ),
    "an array in the report": (
        spoilt("report", lambda report, m: {"error": np.ones(3)}),
        r"array\(\[1., 1., 1.\]\): return a number",
    ),
    "weights that are lost": (
        spoilt(
            "prepare",
            lambda b, raw, dtype: {k: b[k] for k in ("inputs", "targets")},
        ),
        r"Odd.prepare returned no weights for a batch with weights \(5,\): keep the",
    ),
    "rows that are lost": (
        spoilt("prepare", lambda b, raw, dtype: {k: a[:2] for k, a in b.items()}),
        r"returned weights \(2,\) for a batch with weights \(5,\)",
    ),
    "a batch that is none": (
        spoilt("prepare", lambda b, raw, dtype: None),
        "Odd.prepare returned a NoneType: return a dict with entries by name",
    ),
    "integer params": (
        spoilt("problem", lambda p, *_: (p[0], {"w": p[1], "n": jnp.arange(3)})),
        r"params\['n'\] is int",
    ),
    "a number in the params": (
        spoilt("problem", lambda p, *_: (p[0], {"w": p[1], "n": 1.0})),
        r"params\['n'\] is float",
    ),
    "no params": (
        spoilt("problem", lambda p, *_: (p[0], {})),
        "Odd.problem returned no params",
    ),
    "params of no size": (
        spoilt("problem", lambda p, *_: (p[0], {"w": p[1], "z": jnp.zeros((0, 3))})),
        r"params of shape \(0, 3\), which are none",
    ),
    "two params of one name": (
        spoilt(
            "problem",
            lambda p, *_: (p[0], {"a.b": jnp.ones(2), "a": {"b": jnp.ones(2)}}),
        ),
        "returned 2 params by the name a.b in a checkpoint: leave the dot out",
    ),
    "a module": (
        spoilt("problem", lambda p, model, seed: (p[0], model.build(3, 1, seed))),
        "in a .*: split it, by hfdist.models.model.functional",
    ),
    "a problem alone": (
        spoilt("problem", lambda p, *_: p[0]),
        r"return \(Problem\(predict, loss\), params\)",
    ),
    "no problem": (spoilt("problem", lambda p, *_: None), "returned None: return"),
    "a tuple for a problem": (
        spoilt("problem", lambda p, *_: (tuple(p[0]), p[1])),
        r"return \(Problem\(predict, loss\), params\)",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_of_a_tasks_function_is_one_message(name, tmp_path):
    task, message = MISTAKES[name]
    with pytest.raises(UsageError, match=message):
        train(config(task, run_dir=tmp_path / "run"))


def test_numpys_and_jaxs_numbers_in_a_report_are_numbers(tmp_path):
    """NaN among them: every line of metrics.jsonl is valid JSON."""
    task = spoilt(
        "report",
        lambda report, means: {
            "rmse": np.float32(np.sqrt(means["error"])),
            "root": jnp.sqrt(means["error"]),
            "none": np.float32("nan"),
            "count": np.int64(3),
        },
    )
    test = train(config(task, run_dir=tmp_path)).test
    assert test.figures["rmse"] ** 2 == pytest.approx(test.loss, rel=1e-6)
    assert test.figures["root"] ** 2 == pytest.approx(test.loss, rel=1e-6)
    text = (tmp_path / metrics.NAME).read_text().splitlines()[-1]
    line = json.loads(text, parse_constant=pytest.fail)
    assert (line["none"], line["count"]) == ("nan", 3.0)


def test_a_split_of_weight_0_has_no_mean(tmp_path):
    task = spoilt(
        "examples",
        lambda arrays, split: Arrays(
            {**rows(), "weights": np.full(ROWS, float(split == "train"))}
        ),
    )
    assert np.isnan(train(config(task, run_dir=tmp_path)).test.loss)


def test_the_loss_may_hold_on_to_the_initial_params(tmp_path):
    """As a penalty on the distance from them does; training donates its own."""

    def tied(pair, *_):
        problem, start = pair[0], jax.tree.map(jnp.float64, pair[1])

        def predict(params, batch):
            return problem.predict(
                jax.tree.map(lambda w, s: w + s, params, start), batch
            )

        return problem._replace(predict=predict), start

    data = spoilt("problem", tied)
    assert train(config(data, dtype="float64", run_dir=tmp_path)).steps == 2


def test_an_l2_of_the_problems_own_stays():
    task = spoilt("problem", lambda pair, *_: (pair[0]._replace(l2=0.5), pair[1]))
    assert config(task).build_problem()[0].l2 == 0.5
    assert config(Own(), l2=0.25).build_problem()[0].l2 == 0.25
    with pytest.raises(UsageError, match=r"l2 is 0.25, and Odd.problem has an l2 of i"):
        config(task, l2=0.25).build_problem()


def test_an_entry_of_an_example_may_be_a_tree(tmp_path):
    def element(place):
        arrays = {"inputs": np.arange(3.0) + place, "targets": np.float64([place])}
        return arrays | {"more": {"place": place, "pair": (1, 2.0)}}

    elements = grain.MapDataset.range(ROWS).map(element)
    task = spoilt("examples", lambda arrays, split: elements)
    run = train(config(task, run_dir=tmp_path))
    assert (run.steps, np.isfinite(run.test.loss)) == (2, True)
