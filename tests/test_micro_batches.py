"""Micro-batches against the whole batch, and against dense float64 algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hfdist
from cases import METHODS, Case, loop, relative_error
from hfdist import HessianFree, UsageError, parallel
from hfdist.models.autoencoder import Autoencoder
from hfdist.models.model import functional
from hfdist.parallel import collectives
from hfdist.quadratics import quadratic, value_at
from quick import mostly_slow
from test_parallel import MESH, collectives_in, shortened, trace

CASE = Case("softmax_cross_entropy", examples=24, weighted=True)
IN_TWOS = collectives(None, micro_batch_size=2)


@pytest.mark.parametrize(
    ("name", "devices", "size"),
    mostly_slow(
        [
            (name, *layout)
            for name in METHODS
            for layout in [(1, 2), (1, 8), (2, 3), (4, 2), (4, 6)]
        ],
        [("sgd", 1, 2), ("newton", 4, 2), ("hf_hessian", 4, 2), ("hf_untuned", 4, 2)],
    ),
)
def test_the_steps_are_those_of_the_whole_batch(name, devices, size):
    method, mesh = shortened(METHODS[name]), hfdist.make_mesh(devices)
    whole, infos = loop(method.build(CASE.problem), CASE.params, CASE.batch)
    optimizer = method.build(CASE.problem, mesh, micro_batch_size=size)
    params, found = loop(optimizer, CASE.params, CASE.batch)
    # A difference of gradients divides the rounding by ε.
    tolerance = 1e-6 if name == "hf_finite_difference" else 1e-10
    assert relative_error(params, whole) < tolerance
    for a, b in zip(found, infos, strict=True):
        assert a.loss == pytest.approx(float(b.loss), rel=tolerance)


def test_the_model_of_the_batch_is_the_dense_one():
    model = quadratic(CASE.problem, CASE.params, CASE.batch, devices=IN_TWOS)
    assert float(model.value) == pytest.approx(CASE.dense_value(), rel=1e-12)
    flat_N, unravel = ravel_pytree(CASE.params)
    dense_NN = CASE.dense_gauss_newton()
    rng = np.random.default_rng(0)
    u_N, v_N = rng.normal(size=(2, flat_N.size))
    product = model.product(unravel(jnp.asarray(v_N)))
    assert relative_error(product, dense_NN @ v_N) < 1e-12
    assert relative_error(model.gradient, CASE.dense_gradient()) < 1e-12
    vectors_2N = np.stack([u_N, v_N])
    form = model.form([unravel(jnp.asarray(v)) for v in vectors_2N])
    assert relative_error(form, vectors_2N @ dense_NN @ vectors_2N.T) < 1e-12
    assert relative_error(model.matrix(7), dense_NN) < 1e-12


def test_the_rounding_of_a_loss_is_that_of_the_whole_batch():
    d = jax.tree.map(jnp.ones_like, CASE.params)
    arguments = CASE.problem, CASE.params, CASE.batch
    whole = value_at(*arguments, collectives(None), d)
    parts = value_at(*arguments, IN_TWOS, d)
    assert relative_error(parts, whole) < 1e-12


def test_entries_that_every_device_has_whole_are_whole_in_every_micro_batch():
    scales_3 = jnp.array([0.5, 1.0, 2.0])
    batch = CASE.batch | {"scales": scales_3}
    problem = CASE.problem._replace(
        predict=lambda params, batch: CASE.predict(params, batch) * batch["scales"]
    )
    method = shortened(METHODS["hf_kronecker"])
    whole, _ = loop(method.build(problem), CASE.params, batch)
    for mesh in (None, hfdist.make_mesh(2)):
        optimizer = method.build(problem, mesh, ("scales",), micro_batch_size=3)
        assert relative_error(loop(optimizer, CASE.params, batch)[0], whole) < 1e-10


def test_products_over_a_curvature_batch_are_in_micro_batches_too():
    part = jax.tree.map(lambda a: a[::2], CASE.batch)

    def step(optimizer):
        state = optimizer.init(CASE.params)
        return jax.jit(optimizer.update)(
            None, state, CASE.params, batch=CASE.batch, curvature_batch=part
        )[0]

    method = shortened(METHODS["hf_untuned"])
    whole = step(method.build(CASE.problem))
    parts = step(method.build(CASE.problem, micro_batch_size=4))
    assert relative_error(parts, whole) < 1e-10


@pytest.mark.parametrize("name", mostly_slow(METHODS, ["hf_warm_lm", "hf_untuned"]))
def test_no_collective_is_added(name):
    def outside_and_inside(**settings):
        optimizer = METHODS[name].build(CASE.problem, MESH, **settings)
        found = collectives_in(optimizer, CASE)
        return [sum(c.in_loop == inside for c in found) for inside in (False, True)]

    whole, parts = outside_and_inside(), outside_and_inside(micro_batch_size=2)
    assert parts[1] <= whole[1]
    # XLA may let two that are ready at once ride together.
    assert sum(parts) <= sum(whole) + 1


def test_no_value_that_differs_between_devices_is_taken_for_one_that_does_not(
    monkeypatch,
):
    monkeypatch.setattr(parallel, "CHECK_VMA", True)
    trace(METHODS["hf_untuned"].build(CASE.problem, MESH, micro_batch_size=2), CASE)


def test_a_share_that_is_no_whole_number_of_micro_batches_is_refused():
    optimizer = METHODS["sgd"].build(CASE.problem, micro_batch_size=7)
    with pytest.raises(UsageError, match="use a divisor of 24"):
        loop(optimizer, CASE.params, CASE.batch)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "all"])
def test_a_size_that_is_no_number_of_examples_is_refused(size):
    with pytest.raises(UsageError, match="micro_batch_size"):
        METHODS["sgd"].build(CASE.problem, micro_batch_size=size)


def test_a_loss_that_is_not_one_number_a_row_is_refused():
    problem = CASE.problem._replace(loss=lambda z_BC, batch: jnp.mean(z_BC)[None])
    optimizer = METHODS["sgd"].build(problem, micro_batch_size=2)
    with pytest.raises(UsageError, match="in micro-batches, it must return one number"):
        loop(optimizer, CASE.params, CASE.batch)


def temporaries(function, *arguments):
    """Bytes that the compiled function takes beside arguments and results."""
    analysis = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return analysis.temp_size_in_bytes


@pytest.mark.slow
def test_a_step_of_the_deep_autoencoder_takes_the_memory_of_a_micro_batch():
    """16 micro-batches: at most 1.3 of a gradient step's of one, and 8 vectors."""
    size, count = 64, 16
    predict, params = functional(Autoencoder().build(784, 784, 0))
    problem = hfdist.Problem(predict, hfdist.losses.sigmoid_cross_entropy)
    rng = np.random.default_rng(0)
    pixels = jnp.asarray(rng.uniform(size=(size * count, 784)), jnp.float32)
    batch = {"inputs": pixels, "targets": pixels}
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))

    def of(method, batch, **settings):
        optimizer = method.build(problem, **settings)
        return temporaries(
            lambda state, params: optimizer.update(None, state, params, batch=batch),
            optimizer.init(params),
            params,
        )

    one = jax.tree.map(lambda a: a[:size], batch)
    gradient = of(hfdist.SGD(), one)
    found = of(HessianFree(damping=1.0), batch, micro_batch_size=size)
    print(f"gradient {gradient:,}, step {found:,}, params {nbytes:,} bytes")
    assert found <= 1.3 * gradient + 8 * nbytes
    assert of(HessianFree(damping=1.0), batch) > 1.5 * found
