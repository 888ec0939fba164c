"""Config files, overrides, and their JSON."""

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from hfdist import CG, SGD, HessianFree, Newton, methods
from hfdist.errors import UsageError
from hfdist.models.mlp import MLP
from hfdist.runs.config import Config, from_json, load, to_json
from hfdist.tasks.idx import IDX

PAPER = Path(__file__).parent.parent / "configs" / "paper"
NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("sgd", SGD(learning_rate=0.1)),
        ("newton", Newton(damping=0.0, learning_rate=0.5)),
        ("damped_newton", Newton(damping=32.0, learning_rate=0.5)),
        ("hf_newton", HessianFree(curvature="hessian", damping=32.0)),
        ("hf_gauss_newton", HessianFree(curvature="gauss_newton", damping=4.0)),
    ],
)
def test_the_papers_configs(name, method):
    config = load(PAPER / f"{name}.py")
    assert config.method == method
    assert (config.epochs, config.batch_size) == (7, 64)
    assert config.model == MLP(hidden=(10,), activation="relu")


def test_overrides_are_typed_and_nested():
    overrides = (
        "--epochs 1 --batch-size 32 --seed 3 --max-steps 5 --data.dir d "
        "--model.hidden 12 7 --method.damping 2 --method.cg.max-steps 2 "
        "--method.cg.rtol 0.1 --method.learning-rate 0.4 "
        "--method.curvature hessian --method.damping-rule levenberg_marquardt"
    )
    config = load(PAPER / "hf_gauss_newton.py", overrides.split(" "))
    assert config == Config(
        epochs=1,
        batch_size=32,
        seed=3,
        max_steps=5,
        data=IDX(dir=Path("d")),
        model=MLP(hidden=(12, 7)),
        method=HessianFree(
            damping=2.0,
            learning_rate=0.4,
            curvature="hessian",
            damping_rule="levenberg_marquardt",
            cg=CG(max_steps=2, rtol=0.1),
        ),
    )


FULL = Config(
    method=HessianFree(damping=0.1 + 0.2, cg=CG(rtol=1e-7)),
    model=MLP(hidden=(3, 2), activation="tanh"),
    data=IDX(dir=Path("some/where"), classes=4),
    max_steps=9,
    run_dir=Path("there"),
    compilation_cache=None,
)


def test_json_keeps_everything():
    assert from_json(to_json(FULL)) == FULL
    assert from_json(to_json(replace(FULL, data=IDX()))) == replace(FULL, data=IDX())


def tree_of(config=FULL, **changes):
    """Its JSON, read back from text, with entries changed by their dotted names."""
    tree = json.loads(json.dumps(to_json(config)))
    for name, value in changes.items():
        *above, last = name.split("__")
        inner = tree
        for step in above:
            inner = inner[step]
        inner[last] = value
    return tree


def nested(depth):
    inner = 1
    for _ in range(depth):
        inner = [inner]
    return inner


def without(name):
    return {key: value for key, value in tree_of().items() if key != name}


OURS = "class .* is neither hfdist's nor imported by this command's config: if it is"
GARBLED = [
    *(
        (top, "its config is no hfdist.runs.config:Config")
        for top in (None, 3, "x", [], NAN)
    ),
    (tree_of(SGD()), "its config is no hfdist.runs.config:Config"),
    ([tree_of()], "its config is no hfdist.runs.config:Config"),
    ({}, "has no class"),
    (without("class"), "has no class"),
    *((tree_of(**{x: {}}), "has no class") for x in ("epochs", "model__hidden")),
    *(
        (tree_of(method__class=x), "has no class")
        for x in (None, 3, [], {"class": "x"})
    ),
    *((tree_of(method__class=x), OURS) for x in ("", ":", "SGD", "hfdist:Nothing")),
    (tree_of(method__class="hfdist.methods.sgd:Nothing"), "class Nothing of module"),
    (tree_of(method__class="hfdist.methods.sgd:"), OURS),
    (tree_of(method__class="hfdist.methods.nowhere:A"), "nowhere .*cannot be imported"),
    (tree_of(method__class="hfdist.methods.sgd.x:A"), "cannot be imported"),
    (tree_of(method__class="hfdist.checks:Settings"), OURS),
    (tree_of(method__class="hfdist.methods.method:Method"), "is of no object"),
    (tree_of(method=to_json(CG())), "Config.method is CG"),
    (tree_of(method=tree_of()), "Config.method is Config"),
    (tree_of(method__cg=to_json(SGD())), "HessianFree.cg is SGD"),
    (tree_of(data=to_json(MLP())), "Config.data is MLP"),
    (without("method"), "Config cannot be made .* missing .*: 'method'"),
    (tree_of(epoch=3), "Config cannot be made .* unexpected .* 'epoch'"),
    (tree_of(method__cg__steps=3), "CG cannot be made .* unexpected .* 'steps'"),
    *((tree_of(epochs=x), "Config.epochs is") for x in ("3", None, [3], True, 0, 2.5)),
    *((tree_of(epochs=x), "Config.epochs is") for x in (NAN, 1e300, -1, nested(99))),
    *((tree_of(method__damping=x), "HessianFree.damping is") for x in ("4", NAN, [1])),
    *((tree_of(method__damping_bounds=x), "damping_bounds") for x in ([1], "ab", 3)),
    *((tree_of(model__hidden=x), "MLP.hidden") for x in (3, ["3"], [None], [[3]])),
    *((tree_of(data__dir=x), "IDX.dir is") for x in (3, [], "\0", "\ud800")),
    *((tree_of(run_dir=x), "Config.run_dir is") for x in (3, ["x"], False)),
    *((tree_of(data__loss=x), "IDX.loss is") for x in ("hinge", 3, [], None)),
    *((tree_of(model=x), "Config.model is") for x in (None, "MLP", 3, [], nested(20))),
    (tree_of(model=nested(5000)), "nested too deep"),
    (nested(5000), "nested too deep"),
]


@pytest.mark.parametrize(
    ("tree", "message"), GARBLED, ids=[str(i) for i in range(len(GARBLED))]
)
def test_a_tree_that_is_none_of_ours_is_refused(tree, message):
    with pytest.raises(UsageError, match=message) as caught:
        from_json(tree)
    assert len(str(caught.value)) < 400


FOREIGN = [
    *("subprocess:run", "os:system", "builtins:eval", "builtins:exec"),
    *(
        "hfdist.runs.config:importlib",
        "hfdist.runs.config:runpy.run_path",
        "hfdist.runs.config:load",
    ),
    *("hfdist.runs.config:Config.__init__", "hfdist.methods.sgd:SGD.build"),
    *("hfdist.methods..foreign:Mine", "hfdist.methods.sgd;foreign:Mine"),
    *(
        "hfdist.methods/../../foreign:Mine",
        "hfdist.runs.train:train",
        "tests.foreign:Mine",
    ),
    *("foreign:Mine", "foreign.:Mine", "hfdist.foreign:Mine", "hfdist.methods:foreign"),
    *("hfdist.__main__:command", "hfdist_methods.foreign:Mine", "pathlib:Path"),
]


@pytest.mark.parametrize("name", FOREIGN)
def test_nobody_elses_code_runs(name, tmp_path, monkeypatch):
    """Not even that of a module that could be imported."""
    mark = tmp_path / "mark"
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "foreign.py").write_text(
        f"open({str(mark)!r}, 'w')\n"
        f"import hfdist\nclass Mine(hfdist.SGD):\n    args: str = ''"
    )
    before = set(sys.modules)
    for where in ("class", "method__class", "data__class", "method__cg__class"):
        tree = tree_of(**{where: name})
        for arguments in (tree, {**tree, "args": f"touch {mark}", "shell": True}):
            with pytest.raises(UsageError):
                from_json(arguments)
    hostile = {"class": name, "args": f"touch {mark}", "shell": True}
    with pytest.raises(UsageError, match=r"is neither hfdist's nor imported|cannot"):
        from_json(hostile)
    assert not mark.exists()
    assert not {module for module in set(sys.modules) - before if "foreign" in module}


MINE = """
from dataclasses import dataclass
import hfdist
from hfdist.runs.config import Config
from hfdist.checks import Count
@dataclass(frozen=True, kw_only=True)
class Mine(hfdist.SGD):
    times: Count = TIMES
config = Config(method=Mine())
"""


@pytest.mark.parametrize("first", ["", "from __future__ import annotations"])
def test_a_class_of_the_config_file_is_its_newest(tmp_path, first):
    file = tmp_path / "mine.py"
    for times in (1, 2):
        file.write_text(first + MINE.replace("TIMES", str(times)))
        config = load(file)
        tree = tree_of(config)
        assert tree["method"]["class"] == "<run_path>:Mine"
        again = from_json(tree)
        assert again == config
        assert type(again.method) is type(config.method)
        del tree["method"]["times"]
        assert from_json(tree).method.times == times


def test_a_module_added_to_hfdist_is_found(tmp_path, monkeypatch):
    name = "hfdist.methods.added_by_a_test"
    (tmp_path / "added_by_a_test.py").write_text(MINE.replace("TIMES", "3"))
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    tree = tree_of(method={"class": f"{name}:Mine"})
    assert from_json(tree).method.times == 3
    assert sys.modules.pop(name)


# A config file, and what is said of it.
RAISED = {
    "x = 1\nraise ValueError('no')": r"line 2, cannot be run .*\(ValueError: no\)",
    "def f():\n    1 / 0\n\nf()": r"line 2, cannot .*ZeroDivisionError",
    "import json\n\njson.loads('{')": r"line 3, cannot .*JSONDecodeError",
    "import hfdist\nhfdist.CG(\n    max_steps=-1)": r"line 2: CG.max_steps is -1: use",
    "x = (\n1": r"line 1, cannot .*SyntaxError",
    "raise SystemExit(3)": r"line 1, cannot .*SystemExit: 3",
    "import nowhere_at_all": r"line 1, cannot .*No module named",
    "class E(Exception):\n    def __str__(self): 1 / 0\nraise E": r"line 3, .*\(E: …\)",
    "raise KeyError('x' * 10**6)": r"line 1, cannot .*KeyError: 'xxx",
}


@pytest.mark.parametrize("text", RAISED)
def test_what_a_config_file_raises_names_its_line(text, tmp_path):
    file = tmp_path / "raises.py"
    file.write_text(text)
    with pytest.raises(UsageError, match=RAISED[text]) as caught:
        load(file)
    assert str(caught.value).startswith(f"config {file}, line ")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("line", ["__name__ = None", "__name__ = 'os'", "__doc__ = 3"])
def test_what_a_config_file_calls_itself_harms_nothing(line, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "os", os)  # back again, should it go
    file = tmp_path / "named.py"
    file.write_text(f"{MINE.replace('TIMES', '1')}\n{line}")
    assert load(file, ["--method.times", "2"]).method.times == 2
    assert sys.modules["os"] is os
    assert None not in sys.modules


PICKY = MINE.replace("TIMES", "1").replace(
    "config =",
    """
    def __post_init__(self):
        if self.times == 5:
            raise KeyError("five")

config =""",
)


def test_what_a_users_class_raises_is_one_message(tmp_path):
    file = tmp_path / "picky.py"
    file.write_text(PICKY)
    with pytest.raises(UsageError, match=r"picky.py, line 12, .*\(KeyError: 'five'\)"):
        load(file, ["--method.times", "5"])
    tree = tree_of(load(file), method__times=5)
    with pytest.raises(UsageError, match=r"Mine cannot be made .*\(KeyError: 'five'\)"):
        from_json(tree)


@pytest.mark.parametrize(
    "name", ["nowhere", "a\0b", "x" * 300, ".", "README.md/x", "\ud800"]
)
def test_a_path_that_is_no_config_is_named(name):
    with pytest.raises(UsageError, match="does not exist or is not a file"):
        load(Path(name))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["--seed", str(2**64)],
            "seed is 18446744073709551616: use at most 4294967295",
        ),
        (["--seed", "-1"], "seed is -1: use at least 0"),
        (
            ["--method.cg.max-steps", str(10**10)],
            "max_steps is .*: use at most 21474836",
        ),
        (
            ["--method.cg.rtol", "1e300"],
            "rtol is .* use a number that is 0 or more, and",
        ),
        (["--method.cg.rtol", "nan"], "rtol is nan: use a number"),
        (["--model.hidden", "0"], r"hidden.0. is 0: use at least 1"),
        (["--keep", str(10**10)], "keep is 10000000000: use at most 2147483647"),
        (["--checkpoint-minutes", "inf"], "checkpoint_minutes is inf: use a number"),
        (["--epochs", "9" * 5000], "Exceeds the limit"),
    ],
)
def test_an_override_out_of_range_ends_with_2(overrides, message, capsys):
    with pytest.raises(SystemExit) as leaving:
        load(PAPER / "hf_gauss_newton.py", overrides)
    assert leaving.value.code == 2
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", "".join(capsys.readouterr())).split())
    assert re.search(message, shown), shown


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "hidden", [(10**9,), (2**31 - 1,) * 4, (10, 10**9), (10**6, 10**6)]
)
def test_params_that_cannot_fit_are_refused_before_they_are_made(hidden, dtype):
    config = Config(method=SGD(), model=MLP(hidden=hidden), dtype=dtype)
    with pytest.raises(UsageError, match=r"the model has [\d,]+ params, which take"):
        config.build_problem()


def test_a_model_whose_shapes_cannot_be_told_is_built():
    class Picky(MLP):
        def build(self, inputs, outputs, seed):
            module = super().build(inputs, outputs, seed)
            assert float(jnp.sum(module.layers[0].kernel[...])) != 0
            return module

    _, params = Config(method=SGD(), model=Picky()).build_problem()
    _, expected = Config(method=SGD()).build_problem()
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, expected))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"devices": 0}, "devices is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"model": {"hidden": (0,)}}, r"MLP.hidden\[0\] is 0"),
        ({"data": {"classes": 1}}, r"IDX.classes is 1"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, message):
    makers = {"model": MLP, "data": IDX}
    with pytest.raises(ValueError, match=message):
        Config(
            method=SGD(),
            **{k: makers[k](**v) if k in makers else v for k, v in arguments.items()},
        )
