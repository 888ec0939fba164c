"""One list of methods, one contract; then what is particular to each."""

from itertools import pairwise
from typing import NamedTuple

import equinox
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import hfdist
from cases import INPUTS, LM, METHODS, Case, loop, relative_error
from hfdist import CG, SGD, Adam, HessianFree, Newton
from hfdist.models.model import functional
from quick import mostly_slow

each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
# The others differ from these in nothing that the marked tests see.
QUICK = [METHODS[name] for name in ("sgd", "newton", "hf_warm_lm")]
some_methods = pytest.mark.parametrize(
    "method", mostly_slow(METHODS.values(), QUICK), ids=METHODS
)
CASE = Case("softmax_cross_entropy", weighted=True)


@each_method
def test_the_loss_falls_and_the_info_says_what_happened(method):
    _, infos = loop(method.build(CASE.problem), CASE.params, CASE.batch)
    losses = [float(info.loss) for info in infos]
    assert losses[0] == pytest.approx(CASE.dense_value(), rel=1e-12)
    assert losses[0] > losses[1] > losses[2]
    for info in infos:
        assert all(leaf.shape == () for leaf in info)
        assert info.accepted
        assert info.step_norm > 0
    first = CASE.dense_gradient()
    if isinstance(method, SGD):
        assert infos[0].step_norm == pytest.approx(0.1 * np.linalg.norm(first))
    elif not isinstance(method, Adam):
        assert infos[0].damping == method.damping
        assert np.isfinite(infos[0].rho) == (method.damping_rule != "constant")


@some_methods
def test_scan_and_chain_give_the_same_params(method):
    optimizer = optax.chain(method.build(CASE.problem), optax.scale(1.0))

    def body(carry, _):
        params, state = carry
        updates, state = optimizer.update(None, state, params, batch=CASE.batch)
        return (optax.apply_updates(params, updates), state), state[0].info.loss

    carry = CASE.params, optimizer.init(CASE.params)
    (params, _), losses = jax.jit(lambda c: jax.lax.scan(body, c, length=3))(carry)
    expected, infos = loop(method.build(CASE.problem), CASE.params, CASE.batch)
    assert relative_error(params, expected) < 1e-9
    assert losses[2] == pytest.approx(float(infos[2].loss), rel=1e-9)


@some_methods
def test_gradients_passed_in_take_the_place_of_the_methods_own(method):
    optimizer = method.build(CASE.problem)
    state = optimizer.init(CASE.params)
    gradient = ravel_pytree(CASE.params)[1](jnp.asarray(CASE.dense_gradient()))
    own, _ = optimizer.update(None, state, CASE.params, batch=CASE.batch)
    same, _ = optimizer.update(gradient, state, CASE.params, batch=CASE.batch)
    tiny = optax.tree.scale(1e-3, gradient)
    less, _ = optimizer.update(tiny, state, CASE.params, batch=CASE.batch)
    assert relative_error(same, own) < 1e-7
    if isinstance(method, hfdist.Adam):  # whose steps do not shrink with the gradient
        assert relative_error(less, own) < 0.01
    else:
        assert optax.tree.norm(less) < 0.02 * optax.tree.norm(own)


@some_methods
def test_float32_params_stay_float32(method):
    params, batch = jax.tree.map(
        lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a,
        (CASE.params, CASE.batch),
    )
    optimizer = method.build(CASE.problem)
    before = jax.tree.map(lambda a: a.dtype, (params, optimizer.init(params)))
    with jax.numpy_dtype_promotion("strict"):
        step = jax.jit(lambda p, s: optimizer.update(None, s, p, batch=batch))
        updates, state = step(params, optimizer.init(params))
    assert jax.tree.map(lambda a: a.dtype, (updates, state)) == before
    expected, _ = loop(method.build(CASE.problem), CASE.params, CASE.batch, steps=1)
    assert relative_error(optax.apply_updates(params, updates), expected) < 1e-2


@some_methods
def test_a_state_can_be_donated(method):
    optimizer = method.build(CASE.problem)
    params = jax.tree.map(jnp.copy, CASE.params)
    step = jax.jit(
        lambda s, p: optimizer.update(None, s, p, batch=CASE.batch), donate_argnums=0
    )
    _, state = step(optimizer.init(params), params)
    step(state, params)


@each_method
@pytest.mark.parametrize("poison", mostly_slow([np.nan, np.inf], [np.nan]))
def test_a_batch_that_is_not_finite_changes_no_params(method, poison):
    optimizer = method.build(CASE.problem)
    batch = {**CASE.batch, "inputs": CASE.batch["inputs"].at[0, 0].set(poison)}
    state = optimizer.init(CASE.params)
    updates, state = optimizer.update(None, state, CASE.params, batch=batch)
    assert not np.any(ravel_pytree(updates)[0])
    assert not state.info.accepted
    updates, state = optimizer.update(None, state, CASE.params, batch=CASE.batch)
    assert state.info.accepted
    assert np.isfinite(ravel_pytree(updates)[0]).all()


@each_method
@pytest.mark.parametrize("missing", ["params", "batch"])
def test_a_missing_argument_is_named(method, missing):
    optimizer = method.build(CASE.problem)
    arguments = {"params": CASE.params, "batch": CASE.batch}
    del arguments[missing]
    with pytest.raises(ValueError, match="reads the params and the batch"):
        optimizer.update(None, optimizer.init(CASE.params), **arguments)


# Models of other libraries: (predict, params) of the same two-layer network.


def nnx_model():
    rngs = nnx.Rngs(0)
    layers = nnx.Linear(INPUTS, 4, rngs=rngs), jnp.tanh, nnx.Linear(4, 3, rngs=rngs)
    return functional(nnx.Sequential(*layers))


def nnx_state_model():
    rngs = nnx.Rngs(0)
    layers = nnx.Linear(INPUTS, 4, rngs=rngs), jnp.tanh, nnx.Linear(4, 3, rngs=rngs)
    graphdef, params = nnx.split(nnx.Sequential(*layers), nnx.Param)
    return lambda p, batch: nnx.merge(graphdef, p)(batch["inputs"]), params


def linen_model():
    module = linen.Sequential([linen.Dense(4), jnp.tanh, linen.Dense(3)])
    params = module.init(jax.random.key(0), jnp.zeros((1, INPUTS)))
    return lambda p, batch: module.apply(p, batch["inputs"]), params


def equinox_model():
    model = equinox.nn.MLP(INPUTS, 3, 4, 1, jnp.tanh, key=jax.random.key(0))
    params, static = equinox.partition(model, equinox.is_array)

    def predict(params, batch):
        return jax.vmap(equinox.combine(params, static))(batch["inputs"])

    return predict, params


class Weights(NamedTuple):
    first: jax.Array
    second: jax.Array


def named_tuple_model():
    params = Weights(jnp.ones((INPUTS, 4)) / 3, jnp.ones((4, 3)) / 2)
    return lambda p, batch: jnp.tanh(batch["inputs"] @ p.first) @ p.second, params


MODELS = [nnx_model, nnx_state_model, linen_model, equinox_model, named_tuple_model]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["sgd", "hf_warm_lm"])
def test_params_of_any_library(model, name):
    predict, params = model()
    problem = hfdist.Problem(predict, hfdist.losses.softmax_cross_entropy)
    after, infos = loop(METHODS[name].build(problem), params, CASE.batch)
    assert infos[0].loss > infos[-1].loss
    assert jax.tree.structure(after) == jax.tree.structure(params)


# Each method against the algebra of its definition.


def solved(matrix_NN, damping):
    gradient_N = CASE.dense_gradient()
    return -np.linalg.solve(matrix_NN + damping * np.eye(len(gradient_N)), gradient_N)


@pytest.mark.parametrize("damping", [1e-2, 5.0])
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_newton_step_is_the_dense_solve(damping, curvature):
    matrix_NN = getattr(CASE, f"dense_{curvature}")()
    method = Newton(damping=damping, learning_rate=0.5, curvature=curvature)
    optimizer = method.build(CASE.problem)
    updates, state = optimizer.update(
        None, optimizer.init(CASE.params), CASE.params, batch=CASE.batch
    )
    assert relative_error(updates, 0.5 * solved(matrix_NN, damping)) < 1e-9
    smallest = np.linalg.eigvalsh(matrix_NN)[0] + damping
    assert bool(state.info.indefinite) == (smallest < 0)


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_hessian_free_step_solved_to_the_end_is_the_dense_solve(curvature):
    method = HessianFree(
        curvature=curvature,
        damping=5.0,
        learning_rate=0.25,
        cg=CG(max_steps=100, rtol=1e-13),
    )
    updates, _ = method.build(CASE.problem).update(
        None,
        method.build(CASE.problem).init(CASE.params),
        CASE.params,
        batch=CASE.batch,
    )
    expected = 0.25 * solved(getattr(CASE, f"dense_{curvature}")(), 5.0)
    assert relative_error(updates, expected) < 1e-10


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_damped_newton_by_dense_solve_and_by_cg_take_the_same_five_steps(curvature):
    exact = Newton(damping=5.0, curvature=curvature)
    tight = CG(max_steps=200, rtol=1e-10)
    by_cg = HessianFree(damping=5.0, curvature=curvature, cg=tight)
    a, a_infos = loop(exact.build(CASE.problem), CASE.params, CASE.batch, steps=5)
    b, b_infos = loop(by_cg.build(CASE.problem), CASE.params, CASE.batch, steps=5)
    assert relative_error(a, b) < 1e-8
    for info_a, info_b in zip(a_infos, b_infos, strict=True):
        assert info_a.loss == pytest.approx(float(info_b.loss), rel=1e-8)
        assert info_a.step_norm == pytest.approx(float(info_b.step_norm), rel=1e-8)


# Damping, rejection, warm start, negative curvature.


@pytest.mark.parametrize("rule", ["constant", LM])
def test_the_info_says_what_the_step_promised_and_kept(rule):
    method = HessianFree(damping=2.0, learning_rate=0.7, damping_rule=rule)
    params, (info,) = loop(method.build(CASE.problem), CASE.params, CASE.batch, steps=1)
    step_N = np.asarray(ravel_pytree(params)[0] - ravel_pytree(CASE.params)[0])
    gradient_N = CASE.dense_gradient()
    predicted = -gradient_N @ step_N - step_N @ CASE.dense_gauss_newton() @ step_N / 2
    assert info.predicted_decrease == pytest.approx(predicted, rel=1e-8)
    assert info.gradient_norm == pytest.approx(np.linalg.norm(gradient_N), rel=1e-12)
    assert info.refusal == hfdist.Refusal.NONE
    losses_B = CASE.problem.loss(CASE.predict(params, CASE.batch), CASE.batch)
    after = CASE.weights() @ np.asarray(losses_B)
    if rule == LM:
        assert info.loss_after == pytest.approx(after, rel=1e-12)
        decrease = CASE.dense_value() - after
        assert info.actual_decrease == pytest.approx(decrease, rel=1e-9)
    else:  # it would take a forward pass
        assert np.isnan([info.loss_after, info.actual_decrease, info.rho]).all()


def test_the_info_says_why_a_step_was_refused():
    refusal = hfdist.Refusal
    singular = Newton(damping=0.0, input_reduction=False)
    zeros = jax.tree.map(jnp.zeros_like, CASE.params)
    _, (info,) = loop(singular.build(CASE.problem), zeros, CASE.batch, steps=1)
    assert info.refusal == refusal.STEP_NOT_FINITE
    far = HessianFree(damping=0.01, learning_rate=50.0, damping_rule=LM)
    _, (info,) = loop(far.build(CASE.problem), CASE.params, CASE.batch, steps=1)
    assert info.refusal == refusal.LOSS_ROSE
    for method in (SGD(), HessianFree(damping=4.0)):
        optimizer = method.build(CASE.problem)
        poisoned = jax.tree.map(lambda w: w * jnp.nan, CASE.params)
        _, state = optimizer.update(
            poisoned, optimizer.init(CASE.params), CASE.params, batch=CASE.batch
        )
        assert state.info.refusal == refusal.GRADIENT_NOT_FINITE
        assert not state.info.accepted


def test_rho_is_the_ratio_of_actual_and_predicted_decrease():
    method = HessianFree(damping=2.0, learning_rate=0.7, damping_rule=LM)
    optimizer = method.build(CASE.problem)
    params, (info,) = loop(optimizer, CASE.params, CASE.batch, steps=1)
    step_N = np.asarray(ravel_pytree(params)[0] - ravel_pytree(CASE.params)[0])
    predicted = CASE.dense_gradient() @ step_N
    predicted += step_N @ CASE.dense_gauss_newton() @ step_N / 2  # λ left out
    _, (after,) = loop(optimizer, params, CASE.batch, steps=1)
    expected = (info.loss - after.loss) / -predicted
    assert info.rho == pytest.approx(float(expected), rel=1e-8)


def test_levenberg_marquardt_moves_the_damping_by_rho():
    _, infos = loop(METHODS["hf_warm_lm"].build(CASE.problem), CASE.params, CASE.batch)
    for before, after in pairwise(infos):
        factor = 2 / 3 if before.rho > 3 / 4 else 3 / 2 if before.rho < 1 / 4 else 1
        assert after.damping == pytest.approx(float(before.damping) * factor)


def test_a_step_that_raises_the_loss_is_rejected_and_damping_raised():
    method = HessianFree(damping=0.01, learning_rate=50.0, damping_rule=LM)
    params, infos = loop(method.build(CASE.problem), CASE.params, CASE.batch)
    assert not infos[0].accepted
    assert infos[0].rho == -np.inf
    assert infos[1].loss == infos[0].loss
    assert infos[1].damping == pytest.approx(0.015)
    rejected = [info for info in infos if not info.accepted]
    if len(rejected) == len(infos):
        assert relative_error(params, CASE.params) == 0


def test_a_warm_start_saves_cg_steps():
    """On a fixed batch, with steps small enough for the solution to stay put."""
    tight = CG(max_steps=100, rtol=1e-6)
    common = {"damping": 0.1, "learning_rate": 1e-3, "cg": tight}
    _, cold = loop(
        HessianFree(**common).build(CASE.problem), CASE.params, CASE.batch, 4
    )
    _, warm = loop(
        HessianFree(**common, warm_start=1.0).build(CASE.problem),
        CASE.params,
        CASE.batch,
        4,
    )
    assert warm[0].cg_steps == cold[0].cg_steps
    assert warm[-1].cg_steps < cold[-1].cg_steps


INDEFINITE = {
    "newton_undamped": Newton(damping=0.0),
    "newton": Newton(damping=1e-8),
    "newton_lm": Newton(damping=1e-8, damping_rule=LM),
    "hf": HessianFree(curvature="hessian", damping=1e-8, cg=CG(max_steps=100)),
    "hf_fd": HessianFree(curvature="finite_difference", damping=1e-8),
    "hf_lm": HessianFree(
        curvature="hessian", damping=1e-8, damping_rule=LM, warm_start=0.95
    ),
}


@pytest.mark.parametrize("method", INDEFINITE.values(), ids=INDEFINITE)
@pytest.mark.parametrize(
    "dtype", mostly_slow([jnp.float32, jnp.float64], [jnp.float32])
)
def test_an_indefinite_hessian_never_writes_a_nan(method, dtype):
    """Dead inputs make it singular too, as the pixels of MNIST that are always 0 do."""
    case = Case("softmax_cross_entropy")
    batch = {**case.batch, "inputs": case.batch["inputs"].at[:, 0].set(0)}
    batch["inputs"] = batch["inputs"].astype(dtype)
    params = jax.tree.map(lambda a: a.astype(dtype), case.params)
    optimizer = method.build(case.problem)
    params, infos = loop(optimizer, params, batch, steps=10)
    # A NaN that was written once would still be there.
    assert np.isfinite(ravel_pytree(params)[0]).all()
    assert any(info.indefinite for info in infos)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        (SGD, {"learning_rate": 0.0}, "learning_rate is 0.0: use a number that is mo"),
        (SGD, {"learning_rate": float("nan")}, "learning_rate is nan"),
        (Newton, {"damping": -1.0}, "damping is -1.0: use a number that is 0 or more"),
        (HessianFree, {"damping": float("inf")}, "damping is inf"),
        (HessianFree, {"warm_start": -0.1}, "warm_start"),
        (HessianFree, {"curvature": "hessian", "damping": 0}, "undamped CG on the He"),
        (HessianFree, {"curvature": "finite_difference", "damping": 0}, "undamped CG"),
    ],
)
def test_settings_out_of_range_are_refused(method, arguments, message):
    with pytest.raises(ValueError, match=message):
        method(**arguments)
