"""Blocks that are computed again: the same numbers, in the memory of one block."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hfdist
from cases import ONE_DEVICE, loop, relative_error
from hfdist import CG, HessianFree, losses
from hfdist.models.model import functional
from hfdist.models.transformer import Transformer
from hfdist.quadratics import quadratic
from quick import mostly_slow

DEEP = {"layers": 8, "width": 32, "context": 32, "examples": 16}
KINDS = ("gauss_newton", "hessian", "layerwise_gauss_newton")


def problem_of(remat, layers=2, heads=2, width=8, context=5, vocabulary=7, examples=4):
    """A problem, params of size 0.3, so that attention matters, and a batch."""
    model = Transformer(layers=layers, heads=heads, width=width, remat=remat)
    predict, params = functional(model.build(context, vocabulary, 0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(leaf + rng.normal(scale=0.3, size=leaf.shape)), params
    )
    tokens = jnp.asarray(rng.integers(0, vocabulary, (examples, context + 1)))
    batch = {"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}
    return hfdist.Problem(predict, losses.next_token_cross_entropy), params, batch


def product_of(problem, batch, kind, params, v):
    model = quadratic(problem, params, batch, kind, ONE_DEVICE)
    return model.value, model.gradient, model.product(v)


@pytest.mark.parametrize("kind", mostly_slow(KINDS, ["gauss_newton"]))
def test_values_gradients_and_products_are_the_same(kind):
    found = []
    for remat in (False, True):
        problem, params, batch = problem_of(remat)
        run = jax.jit(partial(product_of, problem, batch, kind))
        found.append(run(params, params))
    for kept, again in zip(*found, strict=True):
        assert relative_error(again, kept) < 1e-12


@pytest.mark.slow
def test_steps_over_devices_are_the_same():
    method = HessianFree(damping=1.0, warm_start=0.9, cg=CG(max_steps=3, rtol=0.0))
    found = []
    for remat, devices in ((False, 1), (True, 2)):
        problem, params, batch = problem_of(remat)
        mesh = hfdist.make_mesh(devices)
        found.append(loop(method.build(problem, mesh), params, batch)[0])
    assert relative_error(*found) < 1e-9


def kept(remat):
    """Bytes that the linearised outputs of 8 blocks keep for products with J."""
    problem, params, batch = problem_of(remat, **DEEP)
    run = jax.eval_shape(
        lambda params: jax.linearize(lambda p: problem.predict(p, batch), params)[1],
        params,
    )
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(run))


def test_what_is_kept_are_the_inputs_of_blocks():
    assert kept(True) < kept(False) / 8


def temporaries(function, *arguments):
    """Bytes of memory that a compiled program takes for what is between.

    XLA for CPUs drops what keeps a recomputation in its place, optimisation barriers,
    before it orders the operations, and XLA for GPUs after: here they are kept.
    """
    kept: Any = {"xla_disable_hlo_passes": "cse_barrier_expander"}
    compiled = jax.jit(function).lower(*arguments).compile(compiler_options=kept)
    memory: Any = compiled.memory_analysis()
    return memory.temp_size_in_bytes


@pytest.mark.slow
def test_a_step_takes_the_memory_of_one_block():
    products, steps = [], []
    for remat in (False, True):
        problem, params, batch = problem_of(remat, **DEEP)
        run = partial(product_of, problem, batch, "gauss_newton")
        products.append(temporaries(run, params, params))
        optimizer = HessianFree(damping=1.0, cg=CG(max_steps=3)).build(problem)
        update = partial(optimizer.update, None, batch=batch)
        steps.append(temporaries(update, optimizer.init(params), params))
    for kept, again in (products, steps):
        assert again < kept / 3
