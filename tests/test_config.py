"""Config files, overrides, and their JSON."""

from dataclasses import replace
from pathlib import Path

import pytest

from hfdist import CG, SGD, HessianFree, Newton
from hfdist.config import Config, from_json, load, to_json
from hfdist.data.idx import IDX
from hfdist.models.mlp import MLP

PAPER = Path(__file__).parent.parent / "configs" / "paper"


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


def test_a_class_that_cannot_be_imported_is_named():
    tree = to_json(FULL)
    tree["method"]["class"] = "<run_path>:Mine"
    with pytest.raises(ValueError, match=r"class Mine .* cannot be imported"):
        from_json(tree)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"devices": 0}, "devices is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"model": {"hidden": (0,)}}, "model.hidden"),
        ({"data": {"classes": 1}}, "data.classes"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, message):
    makers = {"model": MLP, "data": IDX}
    with pytest.raises(ValueError, match=message):
        Config(
            method=SGD(),
            **{k: makers[k](**v) if k in makers else v for k, v in arguments.items()},
        )
