"""The layerwise Gauss-Newton matrix against the blocks of a dense one."""

import itertools
import re
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hfdist
from cases import ONE_DEVICE, Case, loop, network, relative_error
from hfdist import CG, HessianFree, losses
from hfdist.jacobian import with_jacobian
from hfdist.layers import layers_of
from hfdist.models.mlp import MLP
from hfdist.models.model import functional
from hfdist.models.transformer import Transformer
from hfdist.quadratics import quadratic
from quick import mostly_slow

KIND = "layerwise_gauss_newton"
W = np.ones((2, 2))
LINEAR = {"kernel": W, "bias": W[0]}


@pytest.mark.parametrize(
    ("params", "layers"),
    [
        ({"first": LINEAR, "second": LINEAR}, [[0, 1], [2, 3]]),
        ({"layers": {0: LINEAR, 2: LINEAR}}, [[0, 1], [2, 3]]),
        ({"params": {"Dense_0": LINEAR, "Dense_1": LINEAR}}, [[0, 1], [2, 3]]),
        ([(W, W[0]), (W, W[0])], [[0, 1], [2, 3]]),
        (
            {"blocks": [LINEAR, {"a": LINEAR, "b": W}], "head": W},
            [[0, 1], [2, 3, 4], [5]],
        ),
        ({"ends": [W, W], "head": W}, [[0, 1], [2]]),
        ([W, W], [[0], [1]]),
        (LINEAR, [[0], [1]]),
        (W, [[0]]),
        ({"only": [W]}, [[0]]),
    ],
)
def test_the_layers_of_params(params, layers):
    assert layers_of(params) == layers


def test_the_layers_of_a_transformer():
    _, params, _ = problems()["transformer"][0]
    names = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    firsts = [names[own[0]] for own in layers_of(params)]
    keys = [name.split("'")[1] for name in firsts]
    assert keys == ["blocks", "blocks", "norm", "positions_TD", "tokens_VD"]


@cache
def problems():
    """(problem, params, batch) by name, with what tells the layers of a leaf's path."""
    model = Transformer(layers=2, heads=2, width=4)
    predict, params = functional(model.build(5, 7, 0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(leaf + rng.normal(scale=0.3, size=leaf.shape)), params
    )
    tokens = rng.integers(0, 7, (4, 6))
    batch = {
        "inputs": jnp.asarray(tokens[:, :-1]),
        "labels": jnp.asarray(tokens[:, 1:]),
        "weights": jnp.asarray([0.5, 2.0, 1.0, 0.0]),
    }
    problem = hfdist.Problem(predict, losses.next_token_cross_entropy)
    case = Case("squared_error", examples=8, weighted=True)
    return {
        "transformer": (
            (problem, params, batch),
            r"\['blocks'\]\[\d\]|\['\w+'\]",
        ),
        "mlp": (network(5, 3, 8, 0), r"\['layers'\]\[\d\]"),
        "case": ((case.problem, case.params, case.batch), r"\['\w+'\]"),
    }


def mean_loss(problem, batch, z):
    weights_B = batch.get("weights", jnp.ones(len(z)))
    return jnp.sum(weights_B * problem.loss(z, batch)) / jnp.sum(weights_B)


def dense_blocks(problem, params, batch, layer):
    """J and H_z written down, and G's blocks by the names of the leaves."""
    flat_N, unravel = ravel_pytree(params)

    def outputs(w_N):
        return problem.predict(unravel(w_N), batch)

    z = outputs(flat_N)
    j_CN = np.asarray(jax.jit(jax.jacobian(outputs))(flat_N)).reshape(z.size, -1)
    h_CC = np.asarray(
        jax.jit(jax.hessian(partial(mean_loss, problem, batch)))(z)
    ).reshape(z.size, z.size)
    names = [
        re.findall(layer, jax.tree_util.keystr(path))[0]
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        for _ in range(leaf.size)
    ]
    same_NN = np.array(names)[:, None] == np.array(names)
    return np.where(same_NN, j_CN.T @ h_CC @ j_CN, 0)


@pytest.mark.parametrize("name", mostly_slow(["transformer", "mlp", "case"], ["mlp"]))
def test_products_are_those_of_the_dense_blocks(name):
    (problem, params, batch), layer = problems()[name]
    blocks_NN = dense_blocks(problem, params, batch, layer)
    flat_N, unravel = ravel_pytree(params)
    vs = np.random.default_rng(3).normal(size=(3, flat_N.size))

    def mean(params):
        return mean_loss(problem, batch, problem.predict(params, batch))

    @jax.jit
    def products(params, vs):
        model = quadratic(problem, params, batch, KIND, ONE_DEVICE)
        each = [unravel(v) for v in vs]
        return model.gradient, [model.product(v) for v in each], model.form(each)

    gradient, products_, form = products(params, vs)
    assert relative_error(gradient, jax.jit(jax.grad(mean))(params)) < 1e-12
    for product, v in zip(products_, vs, strict=True):
        assert relative_error(product, blocks_NN @ v) < 1e-11
    assert relative_error(form, vs @ blocks_NN @ vs.T) < 1e-11


def product_of(problem, params, batch):
    return quadratic(problem, params, batch, KIND).product(params)


def test_a_written_jacobian_changes_nothing():
    case = Case("softmax_cross_entropy")
    written = case.problem._replace(predict=with_jacobian(case.predict))
    products = [
        jax.jit(partial(product_of, problem))(case.params, case.batch)
        for problem in (case.problem, written)
    ]
    assert relative_error(*products) < 1e-12


def test_a_product_leaves_out_what_comes_before_a_layer():
    """Once forth and back each; the whole matrix's product has two terms a layer,
    but for the first, of which the inputs have no tangent."""
    depth, width = 8, 32
    model = MLP(hidden=(width,) * (depth - 1), activation="tanh")
    predict, params = functional(model.build(width, width, 0))
    problem = hfdist.Problem(predict, losses.squared_error)
    batch = {"inputs": jnp.ones((16, width)), "targets": jnp.ones((16, width))}

    def operations(kind, products):
        def multiplied(params, v):
            model = quadratic(problem, params, batch, kind)
            for _ in range(products):
                v = model.product(v)
            return v

        compiled = jax.jit(multiplied).lower(params, params).compile()
        cost: Any = compiled.cost_analysis()
        return cost["flops"]

    whole, layerwise = (
        operations(kind, 2) - operations(kind, 1) for kind in ("gauss_newton", KIND)
    )
    ratio = depth * (depth + 1) / (4 * depth - 2)
    assert layerwise / whole == pytest.approx(ratio, rel=0.1)


METHODS = {
    "cg": HessianFree(
        damping=0.5, curvature=KIND, learning_rate=1.0, cg=CG(max_steps=3)
    ),
    "undamped": HessianFree(damping=0.0, curvature=KIND, cg=CG(max_steps=3)),
    "untuned": HessianFree(curvature=KIND),
}


@pytest.mark.parametrize(
    ("name", "devices"), mostly_slow(itertools.product(METHODS, [1, 2]), [("cg", 1)])
)
def test_a_transformer_trains(name, devices):
    (problem, params, batch), _ = problems()["transformer"]
    mesh = hfdist.make_mesh(devices)
    after, infos = loop(METHODS[name].build(problem, mesh), params, batch, steps=8)
    assert infos[-1].loss < 0.8 * infos[0].loss
    assert not any(info.indefinite for info in infos)
    if devices > 1:
        one, _ = loop(METHODS[name].build(problem), params, batch, steps=8)
        assert relative_error(after, one) < 1e-8
