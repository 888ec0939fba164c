"""Params that devices share out, against one device that has them whole."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import hfdist
from cases import METHODS, loop, relative_error
from communication import gpu_compiler
from communication.compiled import collectives_of
from communication.gpu_compiler import compile_step
from hfdist import CG, HessianFree, UsageError, parallel
from hfdist.models.mlp import MLP
from hfdist.models.model import functional
from hfdist.runs.config import Config
from hfdist.runs.shards import as_saved, begin, made
from hfdist.sharing import share_out, split
from quick import mostly_slow
from test_parallel import CASE, MESH, shortened
from test_parallel import trace as traced
from test_sharding import VARIANTS
from together import ROOT

SHARING = {
    name: method
    for name, method in METHODS.items()
    if "params" in method.shardings and name != "hf_finite_difference"
}


@pytest.mark.parametrize(
    ("name", "devices"),
    mostly_slow(product(SHARING, [1, 2, 4]), [("hf_gauss_newton", 4), ("adam", 4)]),
)
def test_the_steps_are_those_of_one_device(name, devices):
    method, mesh = shortened(SHARING[name]), hfdist.make_mesh(devices)
    one, infos = loop(method.build(CASE.problem), CASE.params, CASE.batch)
    optimizer = method.build(CASE.problem, mesh, sharding="params")
    params, found = loop(optimizer, CASE.params, CASE.batch)
    assert relative_error(params, one) < 1e-10
    for a, b in zip(found, infos, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("micro_batch_size", [None, 1])
def test_every_piece_works_on_parts(name, micro_batch_size):
    method = HessianFree(damping=1.0, damping_rule="nielsen", **VARIANTS[name])
    problem = CASE.problem._replace(l2={"first": 0.3, "second": 0.1})
    problem = problem._replace(
        l2={k: dict.fromkeys(CASE.params[k], mu) for k, mu in problem.l2.items()}
    )
    one, _ = loop(method.build(problem), CASE.params, CASE.batch)
    settings = {"sharding": "params", "micro_batch_size": micro_batch_size}
    optimizer = method.build(problem, MESH, **settings)
    # A long solve amplifies the order of summation.
    assert relative_error(loop(optimizer, CASE.params, CASE.batch)[0], one) < 1e-7


@pytest.mark.parametrize(
    "name", mostly_slow(SHARING, ["hf_gauss_newton", "hf_kronecker"])
)
def test_no_value_that_differs_between_devices_is_taken_for_one_that_does_not(
    name, monkeypatch
):
    monkeypatch.setattr(parallel, "CHECK_VMA", True)
    traced(SHARING[name].build(CASE.problem, MESH, sharding="params"), CASE)


def parts_of(tree):
    """The shapes that the first device has."""
    return [leaf.addressable_data(0).shape for leaf in jax.tree.leaves(tree)]


def test_a_run_begins_and_goes_on_with_its_parts_alone():
    config = Config(method=METHODS["hf_untuned"], sharding="params")
    _, params = made(config, MESH)
    assert {type(leaf) for leaf in jax.tree.leaves(params)} == {np.ndarray}
    carry, whole = begin(config, MESH, params), (params, config.method.init(params))
    same = partial(np.array_equal, equal_nan=True)
    assert jax.tree.all(jax.tree.map(same, carry, whole))
    # Of the biases, 10 each, four devices have the whole.
    assert parts_of(carry[0]) == [(10,), (196, 10), (10,), (10, 10)]
    for saved in ("params", "replicated"):
        like = as_saved(config, MESH, params, saved)
        assert parts_of(carry) == [
            leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(like)
        ]


def test_a_device_holds_its_part_of_each_leaf_and_no_more():
    method = shortened(METHODS["hf_warm_lm"])
    optimizer = method.build(CASE.problem, MESH, sharding="params")

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(None, state, params, batch=CASE.batch)
        return optax.apply_updates(params, updates), state

    # first: bias (4,) and kernel (5, 4), second: bias (3,) and kernel (4, 3).
    expected = [(1,), (5, 1), (3,), (1, 3)]
    start = optimizer.init(CASE.params)
    assert parts_of(start.inner.start) == expected
    whole, _ = step(CASE.params, start)
    params, state = step(share_out("params", MESH).vector(CASE.params), start)
    assert relative_error(params, whole) < 1e-12
    for tree in (params, state.inner.start):
        assert parts_of(tree) == expected


@pytest.mark.slow
def test_a_gradient_passed_in_and_a_mesh_whose_shardings_are_types():
    gradient = jax.tree.map(lambda a: a + 1, CASE.params)
    method = shortened(METHODS["hf_gauss_newton"])

    def update(mesh=None, sharding="replicated"):
        optimizer = method.build(CASE.problem, mesh, sharding=sharding)
        state = optimizer.init(CASE.params)
        update = jax.jit(lambda g, s, p: optimizer.update(g, s, p, batch=CASE.batch)[0])
        return update(gradient, state, CASE.params)

    one = update()
    assert relative_error(update(MESH, "params"), one) < 1e-10
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        found = jax.device_get(update(mesh, "params"))
    assert relative_error(found, one) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf_untuned", "adam"])
def test_params_that_mix_dtypes(name):
    params = jax.tree.map(lambda a: a.astype(jnp.float32), CASE.params)
    params["first"]["bias"] = params["first"]["bias"].astype(jnp.bfloat16)
    params["second"]["kernel"] = params["second"]["kernel"].astype(jnp.bfloat16)
    batch = CASE.batch | {"inputs": CASE.batch["inputs"].astype(jnp.float32)}

    def steps(**settings):
        optimizer = shortened(METHODS[name]).build(CASE.problem, **settings)
        return loop(optimizer, params, batch)[0]

    one, many = steps(), steps(mesh=MESH, sharding="params")
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=2e-2, atol=1e-3)


def test_what_goes_by_whole_params_is_refused():
    method = METHODS["hf_finite_difference"]
    with pytest.raises(UsageError, match="goes by the norm of whole params"):
        method.build(CASE.problem, MESH, sharding="params")
    with pytest.raises(UsageError, match="cannot share out params"):
        METHODS["newton"].build(CASE.problem, MESH, sharding="params")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((6, 8), (None, "data")), ((8, 8), ("data",)), ((6, 7), ()), ((), ())],
)
def test_a_leaf_is_split_along_its_longest_side_that_the_devices_divide(
    shape, expected
):
    assert split(jnp.zeros(shape), 4) == PartitionSpec(*expected)


WIDTH, LAYERS = 64, 4


def test_a_product_gathers_one_layer_after_the_other():
    predict, params = functional(
        MLP(hidden=(WIDTH,) * (LAYERS - 1)).build(WIDTH, WIDTH, 0)
    )
    problem = hfdist.Problem(predict, hfdist.losses.squared_error)
    method = HessianFree(damping=1.0, cg=CG(max_steps=3))
    optimizer = method.build(problem, MESH, sharding="params")
    held = share_out("params", MESH).vector(params)
    zeros = jnp.zeros((8, WIDTH), jnp.float32)
    rows = NamedSharding(MESH, PartitionSpec("data"))
    batch = jax.device_put({"inputs": zeros, "targets": zeros}, rows)
    update = jax.jit(lambda s, p, b: optimizer.update(None, s, p, batch=b))
    program = update.lower(optimizer.init(held), held, batch).compile()

    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    arguments = program.memory_analysis().argument_size_in_bytes
    assert arguments < 1.1 * (whole + 2 * zeros.nbytes) / 4
    layer = WIDTH * WIDTH * zeros.dtype.itemsize
    found = collectives_of(program.as_text())
    assert max(c.bytes for c in found) == layer
    in_loop = [c.kind for c in found if c.in_loop and c.bytes == layer]
    # Each direction, and the weights but the first, which no product needs.
    assert in_loop.count("all-gather") >= 2 * LAYERS - 1
    assert in_loop.count("reduce-scatter") == LAYERS


@pytest.mark.slow
def test_gpus_hold_no_whole_copy_of_the_params():
    """Nine layers over 8 GPUs: CG's five vectors in parts, and three layers at most."""
    try:
        gpu_compiler.interpreter()
    except UsageError as error:
        pytest.skip(str(error))
    settings = (
        "--batch-size 64 --method.preconditioner none --method.cg.max-steps 3 "
        "--method.step-rule fixed_rate --method.damping-rule constant "
        "--method.no-input-reduction --model.hidden"
    )
    config = ROOT / "configs/mnist/wide.py"
    overrides = [*settings.split(), *["1024"] * 9, "--sharding"]
    memory = {
        sharding: compile_step(config, [*overrides, sharding], "1x8", "H100")
        .programs[0]
        .memory
        for sharding in ("replicated", "params")
    }
    whole, layer = memory["replicated"]["arguments"], 1024 * 1024 * 4
    assert memory["params"]["arguments"] < 1.1 * whole / 8
    assert memory["params"]["temporaries"] < 5 * whole / 8 + 3 * layer
    assert memory["replicated"]["temporaries"] > 5 * whole
