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
from hfdist.models.transformer import Transformer
from hfdist.sharing import share_out, split
from hfdist.where_used import where_used
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
        assert relative_error(update(mesh, "params"), one) < 1e-10


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
        "--no-method.input-reduction --model.hidden"
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


def test_a_weight_is_made_again_for_a_derivative():
    params = {"first": jnp.ones((7, 3)), "second": jnp.ones((2, 7))}
    batch = {"inputs": jnp.ones((5, 3))}

    def predict(params, batch):
        hidden = jnp.tanh(batch["inputs"] @ params["first"].T)
        return hidden @ params["second"].T

    def kept(predict):
        _, vjp = jax.vjp(lambda params: predict(params, batch), params)
        return {leaf.shape for leaf in jax.tree.leaves(vjp)}

    assert (7, 2) in kept(predict)  # the transpose
    assert (7, 2) not in kept(where_used(predict))


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_a_transformer_is_the_same_with_its_weights_made_where_used(remat):
    settings = Transformer(layers=2, heads=2, width=8, remat=remat)
    predict, params = functional(settings.build(6, 11, 0))
    batch = {"inputs": jnp.arange(12).reshape(2, 6) % 11}
    batch["labels"] = (batch["inputs"] + 1) % 11

    @partial(jax.jit, static_argnums=0)
    def product(predict):
        problem = hfdist.Problem(predict, hfdist.losses.next_token_cross_entropy)
        model = hfdist.quadratic(problem, params, batch)
        return model.gradient, model.product(params)

    assert relative_error(product(where_used(predict)), product(predict)) < 1e-5
