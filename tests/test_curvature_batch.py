"""Products over one batch; gradient, ρ and acceptance over another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hfdist
from cases import LM, Case, relative_error
from hfdist import CG, SGD, HessianFree, Newton
from quick import mostly_slow

SMALL = Case("softmax_cross_entropy", examples=8, weighted=True)
BIG = Case("softmax_cross_entropy", examples=40)
W_N, UNRAVEL = ravel_pytree(SMALL.params)
METHODS = {
    "cg": (
        "gauss_newton",
        HessianFree(damping=1.0, damping_rule=LM, cg=CG(max_steps=99, rtol=1e-13)),
    ),
    "dense": ("hessian", Newton(damping=9.0, damping_rule=LM)),
    "warm": (
        "gauss_newton",
        HessianFree(damping=1.0, warm_start=0.9, cg=CG(max_steps=99, rtol=1e-13)),
    ),
}
each_method = pytest.mark.parametrize("name", METHODS)
each_mesh = pytest.mark.parametrize("devices", mostly_slow([1, 4], [4]))


def update(method, gradient=None, devices=1, batch=BIG.batch, small=SMALL.batch):
    optimizer = method.build(BIG.problem, hfdist.make_mesh(devices))
    step = jax.jit(
        lambda s, p, b, c: optimizer.update(gradient, s, p, batch=b, curvature_batch=c)
    )
    return step(optimizer.init(SMALL.params), SMALL.params, batch, small)


def solved(name, gradient_N):
    curvature, method = METHODS[name]
    matrix_NN = getattr(SMALL, f"dense_{curvature}")()
    return -0.5 * np.linalg.solve(
        matrix_NN + method.damping * np.eye(len(W_N)), gradient_N
    )


@each_method
@each_mesh
def test_the_gradient_is_of_the_batch_and_the_matrix_of_the_other(name, devices):
    step, state = update(METHODS[name][1], devices=devices)
    assert relative_error(step, solved(name, BIG.dense_gradient())) < 1e-9
    assert state.info.loss == pytest.approx(BIG.dense_value(), rel=1e-12)


@each_method
@each_mesh
def test_a_gradient_passed_in_takes_the_place_of_the_batchs(name, devices):
    gradient = UNRAVEL(jnp.asarray(3 * BIG.dense_gradient()))
    step, _ = update(METHODS[name][1], gradient, devices)
    assert relative_error(step, solved(name, 3 * BIG.dense_gradient())) < 1e-9


@each_mesh
def test_rho_is_of_the_batch_with_the_others_curvature(devices):
    step, state = update(METHODS["cg"][1], devices=devices)
    step_N = np.asarray(ravel_pytree(step)[0])
    moved = jax.tree.map(jnp.add, SMALL.params, step)
    losses_B = BIG.problem.loss(BIG.predict(moved, BIG.batch), BIG.batch)
    after = float(jnp.mean(losses_B))
    predicted = -BIG.dense_gradient() @ step_N
    predicted -= step_N @ SMALL.dense_gauss_newton() @ step_N / 2
    expected = (BIG.dense_value() - after) / predicted
    assert state.info.rho == pytest.approx(expected, rel=1e-8)


def test_a_step_that_helps_the_batch_is_taken_though_the_other_gets_worse():
    method = HessianFree(damping=1.0, damping_rule=LM)
    step, _ = update(method)
    moved = jax.tree.map(jnp.add, SMALL.params, step)

    def log_p_BC(params):
        return jax.nn.log_softmax(BIG.predict(params, SMALL.batch))

    # The Gauss-Newton matrix of softmax cross-entropy does not depend on the labels:
    # take those that the step made less likely.
    worse_B = jnp.argmin(log_p_BC(moved) - log_p_BC(SMALL.params), -1)
    step_again, state = update(method, small={**SMALL.batch, "labels": worse_B})
    assert relative_error(step_again, step) == 0
    chosen = jnp.arange(len(worse_B)), worse_B
    assert jnp.mean(log_p_BC(moved)[chosen]) < jnp.mean(log_p_BC(SMALL.params)[chosen])
    assert state.info.accepted
    assert state.info.actual_decrease > 0


def test_what_does_not_fit_is_refused():
    method, (inputs, labels) = METHODS["cg"][1], (np.ones((8, 5)), np.zeros(8, int))
    with pytest.raises(ValueError, match="pass a dict with entries by name"):
        update(method, small=(inputs, labels))
    seven = jax.tree.map(lambda a: a[:7], SMALL.batch)
    with pytest.raises(ValueError, match="7 examples, which 4 devices cannot share"):
        update(method, small=seven, devices=4)


def test_sgd_leaves_it_aside():
    step, _ = update(SGD(learning_rate=0.1))
    assert relative_error(step, -0.1 * BIG.dense_gradient()) < 1e-12
