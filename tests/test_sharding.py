"""Vectors that devices share out, against one device that has them whole."""

from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import hfdist
import idx_files
from cases import METHODS, loop, relative_error
from communication.compiled import Collective
from hfdist import CG, HessianFree, UsageError
from hfdist.models.autoencoder import Autoencoder
from hfdist.models.mlp import MLP
from hfdist.models.model import functional
from hfdist.runs.config import Config
from hfdist.runs.train import train
from hfdist.sharing import MULTIPLE, bring_together, share_out
from hfdist.tasks.idx import IDX
from quick import mostly_slow
from test_parallel import CASE, MESH, collectives_in, shortened
from together import train_losses

SHARING = {
    name: method for name, method in METHODS.items() if isinstance(method, HessianFree)
}
FLOAT = 8


@pytest.mark.parametrize(
    ("name", "devices"),
    mostly_slow(
        product(SHARING, [1, 2, 4]), [("hf_gauss_newton", 4), ("hf_untuned", 4)]
    ),
)
def test_the_steps_are_those_of_one_device(name, devices):
    method, mesh = shortened(SHARING[name]), hfdist.make_mesh(devices)
    one, infos = loop(method.build(CASE.problem), CASE.params, CASE.batch)
    optimizer = method.build(CASE.problem, mesh, sharding="vectors")
    params, found = loop(optimizer, CASE.params, CASE.batch)
    # A difference of gradients divides the rounding by ε.
    tolerance = 1e-6 if name == "hf_finite_difference" else 1e-10
    assert relative_error(params, one) < tolerance
    for a, b in zip(found, infos, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e4 * tolerance, atol=1e-12)


VARIANTS = {
    "line_search": {"step_rule": "line_search"},
    "backtracking": {"cg": CG(max_steps=9, rtol=0.0, stored=2)},
    "progress": {"cg": CG(max_steps=12, rtol=0.0, progress=0.02)},
    "diagonal": {"preconditioner": "diagonal"},
}


@pytest.mark.parametrize("name", mostly_slow(VARIANTS, ["diagonal"]))
def test_every_piece_works_on_shards(name):
    method = HessianFree(damping=1.0, damping_rule="nielsen", **VARIANTS[name])
    one, _ = loop(method.build(CASE.problem), CASE.params, CASE.batch)
    optimizer = method.build(CASE.problem, MESH, sharding="vectors")
    # A long solve amplifies the order of summation.
    assert relative_error(loop(optimizer, CASE.params, CASE.batch)[0], one) < 1e-7


@pytest.mark.parametrize("l2", [0.1, {"first": 0.3, "second": 0.0}])
def test_weight_decay_is_of_the_params_that_it_names(l2):
    if isinstance(l2, dict):
        l2 = {k: dict.fromkeys(CASE.params[k], mu) for k, mu in l2.items()}
    problem = CASE.problem._replace(l2=l2)
    method = shortened(METHODS["hf_kronecker"])
    one, _ = loop(method.build(problem), CASE.params, CASE.batch)
    optimizer = method.build(problem, MESH, sharding="vectors", micro_batch_size=1)
    assert relative_error(loop(optimizer, CASE.params, CASE.batch)[0], one) < 1e-10


def test_a_gradient_passed_in_is_shared_out():
    gradient = jax.tree.map(lambda a: a + 1, CASE.params)
    method = shortened(METHODS["hf_gauss_newton"])

    def update(**settings):
        optimizer = method.build(CASE.problem, **settings)
        state = optimizer.init(CASE.params)
        update = jax.jit(lambda g, s, p: optimizer.update(g, s, p, batch=CASE.batch)[0])
        return update(gradient, state, CASE.params)

    shared = update(mesh=MESH, sharding="vectors")
    assert relative_error(shared, update()) < 1e-10


def test_a_device_holds_its_part_of_the_state_and_no_more():
    optimizer = METHODS["hf_untuned"].build(CASE.problem, MESH, sharding="vectors")

    @jax.jit
    def steps(params, state):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(None, state, params, batch=CASE.batch)
            return (optax.apply_updates(params, updates), state), state.info.loss

        return jax.lax.scan(step, (params, state), length=3)

    state = optimizer.init(CASE.params)
    (_, after), losses_3 = steps(CASE.params, state)
    for at in (state, after):
        part = at.inner.previous.part
        assert part.shape == (MULTIPLE,)
        assert part.addressable_data(0).shape == (MULTIPLE // 4,)
    assert losses_3[2] < losses_3[0]


@pytest.mark.slow
def test_a_mesh_whose_shardings_are_part_of_the_types():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    method = shortened(METHODS["hf_warm_lm"])
    one, _ = loop(method.build(CASE.problem), CASE.params, CASE.batch)
    with jax.set_mesh(mesh):
        optimizer = method.build(CASE.problem, mesh, sharding="vectors")
        params, _ = loop(optimizer, CASE.params, CASE.batch)
    assert relative_error(params, one) < 1e-10


def test_what_is_shared_out_comes_together_again():
    vector = jax.tree.map(lambda a: a * jnp.pi, CASE.params)
    shard = share_out("vectors", MESH).vector(vector)
    together = bring_together("vectors", MESH, CASE.params).vector(shard)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, together, vector))


def test_a_product_sends_the_bytes_of_an_all_reduce():
    optimizer = METHODS["hf_gauss_newton"].build(CASE.problem, MESH, sharding="vectors")
    every = collectives_in(optimizer, CASE)
    found = sorted(c for c in every if c.bytes > 3 * FLOAT)
    whole = MULTIPLE * FLOAT
    assert found == sorted(
        [
            Collective("all-gather", whole, in_loop=True),  # the direction
            Collective("reduce-scatter", whole, in_loop=True),  # its product
            Collective("reduce-scatter", whole, in_loop=False),  # the gradient
            Collective("all-gather", whole, in_loop=False),  # the update
        ]
    )


@pytest.mark.parametrize("name", ["sgd", "newton"])
def test_methods_without_vectors_to_share_are_refused(name):
    with pytest.raises(UsageError, match="cannot share out vectors"):
        METHODS[name].build(CASE.problem, MESH, sharding="vectors")


def test_another_sharding_is_refused():
    with pytest.raises(UsageError, match="sharding"):
        METHODS["hf_gauss_newton"].build(CASE.problem, MESH, sharding="vector")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = idx_files.make_folder(tmp_path_factory.mktemp("small"), train=80)
    return Config(
        method=replace(shortened(METHODS["hf_warm_lm"]), step_rule="two_term"),
        model=MLP(hidden=(5,)),
        data=IDX(dir=folder, classes=3),
        batch_size=16,
        epochs=2,
        dtype="float64",
        compilation_cache=None,
    )


def test_a_run_goes_on_over_other_devices_that_share_otherwise(small, tmp_path):
    train(replace(small, run_dir=tmp_path / "whole"))
    expected = train_losses(tmp_path / "whole")
    held = [(4, "vectors"), (2, "params"), (1, "replicated"), (4, "params")]
    for k, (devices, sharding) in enumerate(held, 1):
        train(
            replace(
                small,
                run_dir=tmp_path / "parts",
                devices=devices,
                sharding=sharding,
                max_steps=10 if k == len(held) else 2 * k,
            )
        )
    found = train_losses(tmp_path / "parts")
    assert len(found) == len(expected) == 10
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_what_cg_adds_to_a_gradient_step_is_shared_out():
    """The deep autoencoder: 4 devices hold less than a third of CG's part."""
    predict, params = functional(Autoencoder().build(784, 784, 0))
    problem = hfdist.Problem(predict, hfdist.losses.sigmoid_cross_entropy)
    pixels = jnp.zeros((256, 784), jnp.float32)
    rows = NamedSharding(MESH, PartitionSpec("data"))
    batch = jax.device_put({"inputs": pixels, "targets": pixels}, rows)

    def temporaries(method, **settings):
        optimizer = method.build(problem, MESH, micro_batch_size=16, **settings)
        update = jax.jit(lambda s, p, b: optimizer.update(None, s, p, batch=b))
        lowered = update.lower(optimizer.init(params), params, batch)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    gradient = temporaries(hfdist.SGD())
    method = HessianFree(damping=1.0)
    whole, shared = temporaries(method), temporaries(method, sharding="vectors")
    assert shared - gradient < (whole - gradient) / 3
