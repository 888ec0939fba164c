"""A predict whose Jacobian is written down: what it may be, and what it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hfdist
from cases import Case, relative_error
from hfdist.errors import UsageError
from hfdist.jacobian import with_jacobian
from hfdist.outputs import outputs_of
from hfdist.parallel import ONE_DEVICE

CASE = Case("softmax_cross_entropy", examples=8, weighted=True)
FOUR = hfdist.make_mesh(4)


@pytest.mark.parametrize("mesh", [None, FOUR], ids=["1", "4"])
@pytest.mark.parametrize("kind", ["gauss_newton", "hessian"])
def test_products_match_dense_algebra(kind, mesh):
    """With l2, and a leaf of the params that nothing depends on."""
    problem = CASE.problem._replace(predict=with_jacobian(CASE.predict), l2=0.3)
    truths = {"gauss_newton": Case.dense_gauss_newton, "hessian": Case.dense_hessian}
    c = hfdist.curvature(problem, CASE.params, CASE.batch, kind, mesh=mesh)
    plain_NN = truths[kind](CASE)
    expected_NN = plain_NN + 0.3 * np.eye(len(plain_NN))
    v = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size)).reshape(a.shape), c.params)
    v_N = jax.flatten_util.ravel_pytree(v)[0]
    assert relative_error(c.product(v), expected_NN @ v_N) < 1e-12


@pytest.mark.parametrize("sharding", ["replicated", "vectors", "params"])
def test_it_is_not_written_for_params_that_are_shared_out(sharding):
    """Where each product would make it anew: two examples a device, 39 params."""
    problem = CASE.problem._replace(predict=with_jacobian(CASE.predict))
    optimizer = hfdist.HessianFree(damping=1.0).build(problem, FOUR, sharding=sharding)
    update = jax.make_jaxpr(lambda s, p: optimizer.update(None, s, p, batch=CASE.batch))
    program = str(update(optimizer.init(CASE.params), CASE.params))
    written = any(j in program for j in ("f64[2,3,39]", "f64[39,2,3]"))
    assert written == (sharding != "params")


def mixing(params, batch):
    """As BatchNorm in training does."""
    z = CASE.predict(params, batch)
    return (z - z.mean(0)) / (z.std(0) + 0.1)


def rolled(params, batch):
    return jnp.roll(CASE.predict(params, batch), 1, axis=0)


@pytest.mark.parametrize("predict", [mixing, rolled])
@pytest.mark.parametrize("method", [hfdist.SGD(), hfdist.HessianFree(damping=1.0)])
def test_a_network_that_mixes_examples_takes_no_step(predict, method):
    problem = CASE.problem._replace(predict=with_jacobian(predict))
    optimizer = method.build(problem)
    _, state = optimizer.update(
        None, optimizer.init(CASE.params), CASE.params, batch=CASE.batch
    )
    assert state.info.refusal == hfdist.Refusal.GRADIENT_NOT_FINITE
    plain = method.build(CASE.problem._replace(predict=predict))
    _, state = plain.update(
        None, plain.init(CASE.params), CASE.params, batch=CASE.batch
    )
    assert state.info.accepted


def gradient(predict, batch, **others):
    f = with_jacobian(predict)
    return jax.grad(lambda w: jnp.sum(jax.tree.leaves(f(w, batch | others))[0]))(
        CASE.params
    )


MISTAKES = {
    "two outputs": (
        lambda: gradient(lambda w, b: {"z": CASE.predict(w, b)}, CASE.batch),
        "one array of outputs .* returned a dict: concatenate",
    ),
    "an entry without rows": (
        lambda: gradient(CASE.predict, CASE.batch, scale=jnp.ones(3)),
        r"batch\['scale'\] has shape \(3,\), not one of 8 rows: close over it",
    ),
    "a random key": (
        lambda: gradient(CASE.predict, CASE.batch, key=jax.random.key(0)),
        r"batch\['key'\] has shape \(\)",
    ),
    "a derivative in the inputs": (
        lambda: jax.grad(
            lambda x: jnp.sum(with_jacobian(CASE.predict)(CASE.params, {"inputs": x}))
        )(CASE.batch["inputs"]),
        "the derivative in the params alone",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_it_cannot_do_is_refused(name):
    mistake, message = MISTAKES[name]
    with pytest.raises(UsageError, match=message):
        mistake()


def test_the_matrix_is_made_of_the_jacobian_as_it_is():
    problem = CASE.problem._replace(predict=with_jacobian(CASE.predict))
    model = hfdist.quadratic(problem, CASE.params, CASE.batch)
    assert relative_error(model.matrix(7), CASE.dense_gauss_newton()) < 1e-12
    program = jax.make_jaxpr(model.matrix, static_argnums=0)(7)
    assert not [e for e in program.jaxpr.eqns if e.primitive.name == "scan"]


def test_the_kernel_of_the_outputs_is_made_of_the_jacobian_as_it_is():
    """Of weighted examples of three outputs each, one with weight 0."""

    def kernel(predict):
        problem = CASE.problem._replace(predict=predict)
        return outputs_of(problem, CASE.params, CASE.batch, ONE_DEVICE).kernel(7)

    written = with_jacobian(CASE.predict)
    assert relative_error(kernel(written), kernel(CASE.predict)) < 1e-12
    program = jax.make_jaxpr(lambda: kernel(written))()
    assert not [e for e in program.jaxpr.eqns if e.primitive.name == "scan"]
