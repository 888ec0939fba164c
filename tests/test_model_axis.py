"""A mesh with an axis of the caller's own, that splits the params."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import hfdist
from cases import METHODS, loop, relative_error
from communication.compiled import collectives_of
from hfdist import CG, HessianFree, UsageError
from hfdist.methods.method import make_step
from quick import mostly_slow
from test_parallel import CASE, shortened

hfdist.make_mesh(4)  # so that there are as many devices


def two_axes(names=("data", "model"), kind=AxisType.Auto):
    return jax.make_mesh((2, 2), names, axis_types=(kind, kind))


MESH = two_axes()


def split(tree, mesh=MESH):
    """Each array along its first side that is even."""

    def place(a):
        even = [d for d, side in enumerate(a.shape) if side % 2 == 0]
        spec = P(*[None] * even[0], "model") if even else P()
        return jax.device_put(a, NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)


def places(tree):
    return [leaf.sharding.spec for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("micro_batch_size", mostly_slow([None, 2], [None]))
@pytest.mark.parametrize(
    ("name", "names"),
    mostly_slow(
        product(METHODS, [("data", "model"), ("model", "data")]),
        [("hf_gauss_newton", ("data", "model"))],
    ),
)
def test_the_steps_are_those_of_one_device(name, names, micro_batch_size):
    method, mesh = shortened(METHODS[name]), two_axes(names)
    one, _ = loop(method.build(CASE.problem), CASE.params, CASE.batch)
    optimizer = method.build(CASE.problem, mesh, micro_batch_size=micro_batch_size)
    params, _ = loop(optimizer, split(CASE.params, mesh), CASE.batch)
    # A difference of gradients divides the rounding by ε.
    tolerance = 1e-6 if name == "hf_finite_difference" else 1e-10
    assert relative_error(params, one) < tolerance
    assert places(params) == places(split(CASE.params, mesh))


def test_a_product_is_that_of_one_device():
    at = CASE.problem, CASE.params, CASE.batch
    expected = hfdist.curvature(*at).product(CASE.params)
    params = split(CASE.params)
    C = hfdist.curvature(CASE.problem, params, CASE.batch, mesh=MESH)
    assert relative_error(C.product(params), expected) < 1e-12


WIDTH, HIDDEN, LAYERS, BATCH = 64, 256, 2, 16


def residual_net(params, batch):
    x = batch["inputs"]
    for layer in params:
        x = x + jnp.tanh(x @ layer["up"] + layer["bias"]) @ layer["down"]
    return x


def test_no_param_is_brought_together():
    """Of a network split as Megatron's: of N numbers each device sums N/2."""
    rng = np.random.default_rng(0)
    specs = {"up": P(None, "model"), "bias": P("model"), "down": P("model", None)}
    shapes = {"up": (WIDTH, HIDDEN), "bias": (HIDDEN,), "down": (HIDDEN, WIDTH)}
    params = [
        {
            name: jax.device_put(rng.normal(size=shape), NamedSharding(MESH, spec))
            for (name, shape), spec in zip(shapes.items(), specs.values(), strict=True)
        }
        for _ in range(LAYERS)
    ]
    inputs = rng.normal(size=(BATCH, WIDTH))
    problem = hfdist.Problem(residual_net, hfdist.losses.squared_error)
    method = HessianFree(damping=1.0, cg=CG(max_steps=9), input_reduction=False)
    optimizer = method.build(problem, MESH)
    carry = params, optimizer.init(params)
    batch = {"inputs": inputs, "targets": inputs[::-1].copy()}
    program = jax.jit(make_step(optimizer)).lower(carry, batch).compile()
    found = collectives_of(program.as_text())
    assert {one.kind for one in found} == {"all-reduce"}
    half = LAYERS * (2 * WIDTH + 1) * HIDDEN * 8 // 2
    activations = BATCH // 2 * WIDTH * 8
    in_loop = sum(one.bytes for one in found if one.in_loop)
    # J v, Jᵀ u: what each layer sums over its hidden units.
    assert half < in_loop < half + 6 * LAYERS * activations
    assert max(one.bytes for one in found) <= half + activations


@pytest.mark.parametrize("sharding", ["vectors", "params"])
def test_it_is_not_shared_out_twice(sharding):
    with pytest.raises(UsageError, match="mesh of the one axis 'data'"):
        METHODS["hf_gauss_newton"].build(CASE.problem, MESH, sharding=sharding)


def test_an_axis_that_is_explicit_is_refused():
    mesh = two_axes(kind=AxisType.Explicit)
    optimizer = METHODS["hf_gauss_newton"].build(CASE.problem, mesh)
    params = split(CASE.params, mesh)
    with pytest.raises(UsageError, match="automatic ones"):
        optimizer.update(None, optimizer.init(params), params, batch=CASE.batch)


def test_a_mesh_without_an_axis_of_data_is_refused():
    with pytest.raises(UsageError, match="a mesh axis named 'data'"):
        METHODS["sgd"].build(CASE.problem, two_axes(("batch", "model")))
