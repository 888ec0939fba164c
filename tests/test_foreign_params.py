"""What is in the params of other people's loops, and what wraps the optimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import hfdist
from cases import Case, relative_error
from hfdist import HessianFree, Newton

CASE = Case("softmax_cross_entropy", examples=8)
PARAMS, BATCH = CASE.params, CASE.batch
METHOD = HessianFree(damping=1.0)
OPTIMIZER = METHOD.build(CASE.problem)


def step_of(optimizer, gradient=None, params=PARAMS):
    update = jax.jit(lambda s, p: optimizer.update(gradient, s, p, batch=BATCH))
    return update(optimizer.init(params), params)[0]


@pytest.mark.parametrize(
    ("leaf", "name"),
    [
        (jnp.arange(3), "int64"),
        (jnp.zeros(2, bool), "bool"),
        (jnp.zeros(2, complex), "complex128"),
        (3.0, "float"),
    ],
)
def test_leaves_that_are_not_trained_are_refused_by_name(leaf, name):
    with pytest.raises(ValueError, match=rf"params\['extra'\] is {name}: every leaf"):
        OPTIMIZER.init({**PARAMS, "extra": leaf})


def test_none_and_numpy_leaves():
    expected = step_of(OPTIMIZER)
    arrays = jax.tree.map(np.asarray, PARAMS)
    assert relative_error(step_of(OPTIMIZER, params=arrays), expected) == 0
    assert step_of(OPTIMIZER, params={**PARAMS, "none": None})["none"] is None


def test_frozen_leaves_are_closed_over():
    """The step in the others is that of the dense matrix's block."""
    frozen = {"first": PARAMS["first"]}
    problem = CASE.problem._replace(
        predict=lambda p, b: CASE.predict({**frozen, "second": p}, b)
    )
    optimizer = Newton(damping=5.0).build(problem)
    step = step_of(optimizer, params=PARAMS["second"])
    own = slice(-15, None)  # the second layer's 4 · 3 + 3 come last
    matrix_NN = CASE.dense_hessian()[own, own] + 5 * np.eye(15)
    expected = -0.5 * np.linalg.solve(matrix_NN, CASE.dense_gradient()[own])
    assert relative_error(step, expected) < 1e-9


@pytest.mark.parametrize("gradient", [None, PARAMS], ids=["own", "passed in"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: optax.masked(inner, {"first": True, "second": False}),
        lambda inner: optax.partition(
            {"hf": inner, "fixed": optax.set_to_zero()},
            {"first": "hf", "second": "fixed"},
        ),
    ],
)
def test_masked_params_are_refused_with_the_remedy(wrap, gradient):
    with pytest.raises(ValueError, match="hide params that predict needs: to freeze"):
        step_of(wrap(OPTIMIZER), gradient)


@pytest.mark.parametrize(
    "wrap", [lambda o: optax.apply_if_finite(o, 3), lambda o: optax.chain(o)]
)
def test_wrappers_that_pass_gradients_on(wrap):
    gradient = jax.grad(
        lambda p: jnp.mean(CASE.problem.loss(CASE.predict(p, BATCH), BATCH))
    )(PARAMS)
    assert relative_error(step_of(wrap(OPTIMIZER), gradient), step_of(OPTIMIZER)) < 1e-9


def test_a_linen_train_state():
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=OPTIMIZER)
    with pytest.raises(ValueError, match=r"passes no batch.*tx\.update"):
        state.apply_gradients(grads=PARAMS)
    updates, opt_state = state.tx.update(
        None, state.opt_state, state.params, batch=BATCH
    )
    state = state.replace(
        params=optax.apply_updates(state.params, updates), opt_state=opt_state
    )
    assert relative_error(updates, step_of(OPTIMIZER)) < 1e-12


@jax.custom_vjp
def tanh(x):
    return jnp.tanh(x)


tanh.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: ((1 - jnp.tanh(x) ** 2) * g,))


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("kind", [HessianFree, Newton])
def test_a_layer_without_a_forward_derivative(kind, devices):
    def predict(params, batch):
        hidden_BH = tanh(batch["inputs"] @ params["first"]["kernel"])
        return hidden_BH @ params["second"]["kernel"]

    def plain(params, batch):
        hidden_BH = jnp.tanh(batch["inputs"] @ params["first"]["kernel"])
        return hidden_BH @ params["second"]["kernel"]

    def step(curvature, predict):
        problem = CASE.problem._replace(predict=predict)
        method = kind(curvature=curvature, damping=9.0)
        return step_of(method.build(problem, hfdist.make_mesh(devices)))

    with pytest.raises(ValueError, match=r"custom_vjp.*curvature='finite_difference'"):
        step("gauss_newton", predict)
    for curvature in ("hessian", "finite_difference"):
        assert relative_error(step(curvature, predict), step(curvature, plain)) < 1e-7
