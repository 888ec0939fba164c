"""f(w + d) of a quadratic model against dense float64 algebra."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec as P

import hfdist
from cases import ONE_DEVICE as ALONE
from cases import Case, relative_error
from hfdist.coordinates import gram, orthonormal, pulled_back
from hfdist.first_product import first_product, shorten
from hfdist.parallel import collectives
from hfdist.quadratics import quadratic, value_at

CASE = Case("softmax_cross_entropy", examples=4, weighted=True)
W_N, UNRAVEL = ravel_pytree(CASE.params)
D = UNRAVEL(jnp.asarray(np.random.default_rng(7).normal(size=W_N.size) / 3))
each_mesh = pytest.mark.parametrize("devices", [1, 4])


def dense_value(d, l2=0.0):
    """The weighted mean of log-softmaxes in numpy, and the penalty."""
    moved = jax.tree.map(lambda w, step: np.asarray(w + step), CASE.params, d)
    inputs_BD = np.asarray(CASE.batch["inputs"])
    hidden_BH = np.tanh(inputs_BD @ moved["first"]["kernel"] + moved["first"]["bias"])
    z_BC = hidden_BH @ moved["second"]["kernel"] + moved["second"]["bias"]
    z_BC = z_BC - np.log(np.exp(z_BC).sum(1, keepdims=True))
    loss = -CASE.weights() @ np.sum(CASE.targets() * z_BC, 1)
    return float(loss + l2 / 2 * np.sum(ravel_pytree(moved)[0] ** 2))


def on(devices, function):
    """function(collectives, batch) over the devices."""
    mesh = hfdist.make_mesh(devices)
    if mesh is None:
        return jax.jit(lambda batch: function(ALONE, batch))(CASE.batch)
    share = jax.shard_map(
        lambda batch: function(collectives(mesh), batch),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P(),
        check_vma=False,
    )
    return jax.jit(share)(CASE.batch)


@each_mesh
@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
def test_it_is_the_loss_there(devices, l2, curvature):
    problem = CASE.problem._replace(l2=l2)

    def values(devices, batch):
        model = quadratic(problem, CASE.params, batch, curvature, devices)
        zero = jax.tree.map(jnp.zeros_like, D)
        return model.value, model.value_at(zero), model.value_at(D)

    value, here, there = on(devices, values)
    assert here.loss == pytest.approx(float(value), rel=1e-14)
    assert there.loss == pytest.approx(dense_value(D, l2), rel=1e-13)
    eps = np.finfo(np.float64).eps
    assert eps * there.loss <= there.rounding < 100 * eps * there.loss


@each_mesh
@pytest.mark.parametrize("coordinates", [gram, orthonormal])
def test_in_the_span_of_the_inputs_it_is_that_of_the_step_expanded(
    coordinates, devices
):
    def values(devices, batch):
        shorter = shorten(CASE.problem, CASE.params, batch, devices.size, lambda *_: 0)
        assert not isinstance(shorter, str)
        first = first_product(shorter, CASE.problem.loss, CASE.params, batch, devices)
        space = coordinates(first, devices)
        model = quadratic(space.problem, space.params, batch, devices=devices)
        reduced = pulled_back(model, space)
        s = jax.tree.map(lambda leaf: -0.5 * leaf, reduced.gradient)
        return space.expand(s), reduced.value_at(s).loss

    step, loss = on(devices, values)
    expected = UNRAVEL(jnp.asarray(-0.5 * CASE.dense_gradient()))
    assert relative_error(step, expected) < 1e-12
    assert loss == pytest.approx(dense_value(expected), rel=1e-13)


def test_it_does_not_depend_on_padding():
    padded = replace(CASE, weighted=False)
    batch = jax.tree.map(lambda a: jnp.concatenate([a, a]), padded.batch)
    batch["weights"] = jnp.asarray([1.0] * 4 + [0.0] * 4)
    value = jax.jit(lambda batch: value_at(CASE.problem, CASE.params, batch, ALONE, D))
    values = [value(examples).loss for examples in (padded.batch, batch)]
    assert values[0] == pytest.approx(float(values[1]), rel=1e-14)


@pytest.mark.parametrize(("dtype", "step"), [(np.float32, 1e17), (np.float64, 1e150)])
def test_its_rounding_does_not_overflow_before_it_does(dtype, step):
    """Else no increase of the loss up to there would count as one."""
    problem = hfdist.Problem(lambda w, batch: w, hfdist.losses.squared_error)
    batch = {"targets": jnp.zeros((1, 1), dtype)}
    w, d = jnp.zeros((1, 1), dtype), jnp.full((1, 1), step, dtype)
    there = jax.jit(lambda d: value_at(problem, w, batch, ALONE, d))(d)
    assert np.isfinite(there.loss)
    assert there.rounding < 1e-5 * there.loss
