"""Choices checked when they are made; numbers that are schedules, or traced."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hfdist
from cases import LM, Case, relative_error
from hfdist import CG, SGD, HessianFree, Newton
from hfdist.checks import Positive
from hfdist.models.mlp import MLP
from hfdist.models.model import Model
from hfdist.runs.config import Config
from hfdist.solvers.dense import Dense
from hfdist.tasks.idx import IDX
from quick import mostly_slow

CASE = Case("softmax_cross_entropy", examples=8, weighted=True)
METHODS = {
    "cg": HessianFree(damping=1.0, cg=CG(max_steps=3, rtol=0.0)),
    "dense": Newton(damping=5.0),
}
each_method = pytest.mark.parametrize(
    "method", mostly_slow(METHODS.values(), [METHODS["cg"]]), ids=METHODS
)
each_mesh = pytest.mark.parametrize("devices", mostly_slow([1, 4], [4]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: HessianFree(damping_rule="constnat"),
            r"damping_rule is 'constnat': use one of constant, leven.*\(perhaps 'const",
        ),
        (
            lambda: Newton(curvature="ggn"),
            "curvature is 'ggn': use one of finite_difference, gauss_n",
        ),
        (
            lambda: hfdist.quadratic(CASE.problem, CASE.params, CASE.batch, "ggn"),
            "curvature is 'ggn'",
        ),
        (lambda: Config(method=SGD(), dtype="float16"), "dtype is 'float16'"),
        (lambda: IDX(loss="mse"), "loss is 'mse'"),
        (lambda: MLP(activation="rleu"), r"activation is 'rleu'.*\(perhaps 'relu'\)"),
        (lambda: HessianFree(damping_bounds=(0.0, 1.0)), r"damping_bounds\[0\] is 0.0"),
        (lambda: HessianFree(damping_bounds=(1.0, 0.1)), "give the least first"),
        (
            lambda: HessianFree(damping=0.0, damping_rule=LM),
            "damping is 0.0, outside damping_bounds",
        ),
        (
            lambda: Newton(damping=optax.constant_schedule(1.0), damping_rule=LM),
            "damping is a schedule, but levenberg_marquardt moves",
        ),
        (
            lambda: Config(method=SGD(learning_rate=optax.constant_schedule(0.1))),
            r"method.learning_rate is a function, which config.json cannot hold",
        ),
        (lambda: Config(method=SGD(), l2=-1.0), "l2 is -1.0"),
    ],
)
def test_a_setting_that_is_no_choice_is_refused_at_once(make, message):
    with pytest.raises(hfdist.UsageError, match=message):
        make()


def config(**settings):
    return Config(**{"method": SGD(), **settings})


def a_schedule(count):
    return 1.0 / count


# What a field is given, and what it holds then: the same in its declared type.
FITTED = [
    (config, "epochs", 3.0, 3),
    (config, "epochs", np.int64(3), 3),
    (config, "epochs", np.float32(3), 3),
    (config, "epochs", jnp.asarray(3), 3),
    (config, "max_steps", np.array(5), 5),
    (config, "max_steps", None, None),
    (config, "seed", 0, 0),
    (config, "seed", 2**32 - 1, 2**32 - 1),
    (config, "devices", 1024, 1024),
    (config, "l2", 1, 1.0),
    (config, "l2", 0, 0.0),
    (config, "checkpoint_minutes", 0, 0.0),
    (config, "checkpoint_minutes", 1e9, 1e9),
    (config, "profile", np.bool_(True), True),
    (config, "profile", jnp.asarray(False), False),
    (config, "run_dir", "folder", Path("folder")),
    (config, "run_dir", None, None),
    (config, "dtype", np.str_("float64"), "float64"),
    (IDX, "dir", "folder", Path("folder")),
    (IDX, "classes", np.uint8(4), 4),
    (MLP, "hidden", [10, 20], (10, 20)),
    (MLP, "hidden", np.array([10, 20]), (10, 20)),
    (MLP, "hidden", (10.0, np.int32(20), jnp.asarray(30)), (10, 20, 30)),
    (MLP, "hidden", (), ()),
    (CG, "max_steps", 3.0, 3),
    (CG, "rtol", np.float64(0.25), 0.25),
    (CG, "rtol", 0, 0.0),
    (Dense, "block", jnp.asarray(7), 7),
    (SGD, "learning_rate", 1, 1.0),
    (SGD, "learning_rate", np.float32(0.25), 0.25),
    (SGD, "learning_rate", jnp.asarray(0.25), 0.25),
    (SGD, "learning_rate", a_schedule, a_schedule),
    (HessianFree, "damping_bounds", [1, 2], (1.0, 2.0)),
    (HessianFree, "damping_bounds", jnp.asarray([1, 2]), (1.0, 2.0)),
    (HessianFree, "input_reduction", np.bool_(False), False),
]


@pytest.mark.parametrize(("make", "field", "given", "held"), FITTED)
def test_what_loses_nothing_is_turned_into_the_declared_type(make, field, given, held):
    found = getattr(make(**{field: given}), field)
    assert repr(found) == repr(held)  # 3 is not 3.0, nor True 1


# What a field refuses, and what to use instead.
WHOLE, REAL, ZERO = "use a whole number", "use a number", "use a number that is 0 or m"
ONE_ARRAY = jnp.asarray([3])
REFUSED = [
    *((config, "epochs", x, WHOLE) for x in (True, 3.5, "3", None, [3], ONE_ARRAY)),
    *((config, "epochs", x, WHOLE) for x in (np.inf, np.nan, 3 + 0j, np.bool_(True))),
    *((config, "epochs", x, WHOLE) for x in (int, a_schedule, jnp.asarray(3.5))),
    *((config, "epochs", x, "use at least 1") for x in (0, -1, -(10**10), np.array(0))),
    *((config, "epochs", x, "use at most 2147483647") for x in (1e300, 10**5000)),
    *((config, "seed", x, "use at most 4294967295") for x in (2**32, 2**64)),
    *((config, "seed", x, "use at least 0") for x in (-1, np.int8(-1))),
    *(
        (config, field, 10**10, "use at most 2147483647")
        for field in (
            *("epochs", "batch_size", "max_steps", "max_rejected", "keep"),
            *("steps_per_dispatch", "checkpoint_steps", "keep_every"),
            "evaluation_batch_size",
        )
    ),
    *((config, "devices", x, "use at most 1024") for x in (1025, 10**10)),
    *((config, "max_steps", x, WHOLE) for x in ("3", False)),
    *((config, "l2", x, ZERO) for x in (-1, "0", None, True, np.nan, np.inf)),
    *((config, "l2", x, ZERO) for x in (a_schedule, float, ONE_ARRAY)),
    *((config, "l2", x, "from 1.2e-38 to 3.4e") for x in (1e39, 1e-300, 10**400)),
    (config, "checkpoint_minutes", -0.5, ZERO),
    *(
        (config, "curvature_fraction", x, "use a number that is 0.001 or more and at m")
        for x in (0, -1, 1.5, 1e-5, "1", None, True, np.nan)
    ),
    *((config, "batch_growth", x, "use a tuple") for x in (7, "7", {7: 8}, (7, 8))),
    (config, "batch_growth", ((7, 0),), r"growth\[0\]\[1\] is 0: use at least 1"),
    (config, "batch_growth", ((7, 8, 9),), r"growth\[0\] is .*: use a tuple of 2"),
    *((config, "wandb", x, "use True or False") for x in (1, 0.0, "yes", None, bool)),
    *((config, "run_dir", x, "use a path") for x in (3, b"x", "a\0b", "\ud800", Path)),
    *((config, "method", x, "use an instance of") for x in (None, CG(), "SGD", MLP)),
    (config, "method", HessianFree, r"the class HessianFree: use .* HessianFree\("),
    (config, "model", MLP, r"the class MLP: use an instance, MLP\("),
    *((config, "data", x, "use an instance of") for x in (Path("x"), SGD(), None)),
    *((IDX, "loss", x, "use one of softmax") for x in ("hinge", None, 1, [], str)),
    (config, "dtype", jnp.float32, "use one of float32, float64"),
    *((IDX, "classes", x, "use at least 2") for x in (1, 0)),
    *((IDX, "dir", x, "use a path") for x in (1, ["x"], "\0")),
    *((MLP, "hidden", x, "use a tuple") for x in (10, None, "10", np.array(3), {3: 4})),
    *((MLP, "hidden", x, r"hidden\[1\] .* at least 1") for x in ((3, 0), [3, -2])),
    *((MLP, "hidden", x, r"hidden\[1\] .* a whole") for x in ((3, "4"), (3, True))),
    (MLP, "hidden", (10**10,), r"hidden\[0\] is .*: use at most 2147483647"),
    (MLP, "activation", jax.nn.relu, "activation is .*: use one of relu"),
    *((CG, "max_steps", x, "use at") for x in (-1, 10**10)),
    *((CG, "max_steps", x, WHOLE) for x in (None, 2.5, "5")),
    *((CG, "rtol", x, ZERO) for x in (-1, "x", None, np.inf, a_schedule)),
    (CG, "rtol", 1e300, "use a number that is 0 or more, and from 1.2e-38 to 3.4e"),
    *((Dense, "block", x, "use a") for x in (0, 10**10, "x", None, Dense)),
    *((SGD, "learning_rate", x, "use a number that is more than 0") for x in (0, -1)),
    *(
        (SGD, "learning_rate", x, REAL)
        for x in ("0.1", None, False, SGD, np.nan, 1e-40)
    ),
    *((HessianFree, "damping", x, ZERO) for x in (-1, "4", float, ONE_ARRAY)),
    *((HessianFree, "cg", x, "CG") for x in (CG, None, {}, Dense())),
    *(
        (HessianFree, "damping_bounds", x, "use a tuple of 2")
        for x in ((1,), [1, 2, 3])
    ),
    *((HessianFree, "damping_bounds", x, "use a tuple") for x in (1.0, None)),
    *((HessianFree, "damping_bounds", x, REAL) for x in ((1, None), (1.0, a_schedule))),
    (HessianFree, "warm_start", a_schedule, "warm_start is a schedule"),
    *((HessianFree, "input_reduction", x, "True or False") for x in (None, 1, "no")),
    *((HessianFree, "curvature", x, "use one of finite") for x in (None, bool, "ggn")),
    *((Newton, "dense", x, "Dense") for x in (Dense, None, 3)),
]


@pytest.mark.parametrize(
    ("make", "field", "given", "remedy"),
    REFUSED,
    ids=[f"{i}-{make.__name__}-{field}" for i, (make, field, *_) in enumerate(REFUSED)],
)
def test_all_else_is_refused_with_its_name_and_a_remedy(make, field, given, remedy):
    with pytest.raises(hfdist.UsageError, match=remedy) as caught:
        make(**{field: given})
    assert field in str(caught.value)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_where_no_traced_number_can_be_used_it_is_refused():
    for make in (lambda x: CG(rtol=x), lambda x: HessianFree(damping_bounds=(1.0, x))):
        with pytest.raises(hfdist.UsageError, match="use a number that is"):
            jax.jit(make)(2.0)


@dataclass(frozen=True, kw_only=True)
class Wide(Model):
    """A caller's own model, with types that are not known here."""

    widths: set[int] | list[int]
    scale: Positive | None = None
    anything: Any = None

    def build(self, inputs, outputs, seed):
        raise NotImplementedError


def test_a_type_that_is_not_known_is_left_as_it_is():
    two = np.arange(2)
    model = Wide(widths=[3], scale=2, anything=two)
    assert model.widths == [3]
    assert repr(model.scale) == "2.0"
    assert model.anything is two
    with pytest.raises(hfdist.UsageError, match=r"Wide.scale is -1: use a number"):
        Wide(widths=[3], scale=-1)


@pytest.mark.parametrize(
    ("anything", "message"),
    [
        ({3}, r"model.anything is \{3\}, which config.json cannot hold: use numbers"),
        (np.arange(2), "model.anything is array"),
        (lambda x: x, "model.anything is a function, which config.json cannot hold"),
        ((1, [len]), "model.anything is a function"),
    ],
)
def test_a_config_holds_what_its_json_can(anything, message):
    assert config(model=Wide(widths=[3], anything=[1, ("a", None)]))
    with pytest.raises(hfdist.UsageError, match=message):
        config(model=Wide(widths=[3], anything=anything))


def step_of(method, devices=1, params=CASE.params):
    optimizer = method.build(CASE.problem, hfdist.make_mesh(devices))
    update = jax.jit(lambda s, p: optimizer.update(None, s, p, batch=CASE.batch))
    return update(optimizer.init(params), params)


@each_method
@pytest.mark.parametrize("devices", mostly_slow([1, 4], [1]))
def test_schedules_are_followed_update_by_update(method, devices):
    damping, rate = optax.linear_schedule(4, 1, 3), optax.linear_schedule(1, 0.1, 3)
    scheduled = replace(method, damping=damping, learning_rate=rate)
    optimizer = scheduled.build(CASE.problem, hfdist.make_mesh(devices))
    state, params = optimizer.init(CASE.params), CASE.params
    update = jax.jit(lambda s, p: optimizer.update(None, s, p, batch=CASE.batch))
    for k in range(5):
        step, state = update(state, params)
        fixed = replace(method, damping=float(damping(k)), learning_rate=float(rate(k)))
        expected, _ = step_of(fixed, params=params)
        assert relative_error(step, expected) < 1e-6  # optax counts in float32
        assert state.info.damping == pytest.approx(float(damping(k)), rel=1e-6)
        params = optax.apply_updates(params, step)


@each_method
def test_a_schedule_comes_back_to_itself_after_a_solve_that_failed(method):
    damping = optax.piecewise_constant_schedule(4.0, {2: 0.01})
    optimizer = replace(method, damping=damping).build(CASE.problem)
    state = optimizer.init(CASE.params)
    seen = []
    for _ in range(4):
        _, state = optimizer.update(None, state, CASE.params, batch=CASE.batch)
        seen.append(float(state.info.damping))
    assert seen == pytest.approx([4.0, 4.0, 0.04, 0.04])


@each_method
@each_mesh
@pytest.mark.parametrize("rule", mostly_slow(["constant", LM], [LM]))
def test_vmap_over_damping(method, devices, rule):
    dampings = np.array([2.0, 8.0])

    def step(damping):
        return step_of(replace(method, damping=damping, damping_rule=rule), devices)

    steps, states = jax.vmap(step)(jnp.asarray(dampings))
    for i, damping in enumerate(dampings):
        one, state = step(float(damping))
        assert relative_error(jax.tree.map(lambda a, i=i: a[i], steps), one) < 1e-10
        assert states.info.damping[i] == state.info.damping


@each_method
@each_mesh
def test_hyperparameters_injected_under_jit(method, devices):
    mesh = hfdist.make_mesh(devices)

    def build(damping, learning_rate):
        changed = replace(method, damping=damping, learning_rate=learning_rate)
        return changed.build(CASE.problem, mesh)

    optimizer = optax.inject_hyperparams(build)(damping=4.0, learning_rate=0.5)
    update = jax.jit(lambda s: optimizer.update(None, s, CASE.params, batch=CASE.batch))
    step, state = update(optimizer.init(CASE.params))
    expected, _ = step_of(replace(method, damping=4.0, learning_rate=0.5))
    assert relative_error(step, expected) < 1e-10
    state.hyperparams["damping"] = jnp.asarray(2.0)
    state.hyperparams["learning_rate"] = jnp.asarray(0.25)
    step, state = update(state)
    expected, _ = step_of(replace(method, damping=2.0, learning_rate=0.25))
    assert relative_error(step, expected) < 1e-10


def test_rho_judges_the_step_that_the_schedule_takes():
    rate = optax.constant_schedule(0.3)
    common = {"damping": 2.0, "damping_rule": LM}
    _, scheduled = step_of(HessianFree(**common, learning_rate=rate))
    _, fixed = step_of(HessianFree(**common, learning_rate=0.3))
    assert scheduled.info.rho == pytest.approx(float(fixed.info.rho), rel=1e-6)
