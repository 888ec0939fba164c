"""Params and outputs of narrow and of several dtypes, against float64."""

from functools import cache

import jax
import jax.numpy as jnp
import optax
import pytest

import hfdist
from cases import LM, Case, relative_error
from hfdist import CG, SGD, HessianFree, Newton, damping
from hfdist.choices import choices
from hfdist.pytree import widen
from quick import mostly_slow

CASE = Case("softmax_cross_entropy", examples=8)
BATCH = {**CASE.batch, "inputs": CASE.batch["inputs"].astype(jnp.float32)}
MIXES = {  # dtypes of the kernels and of the biases; the step's relative error
    "bfloat16 kernels": (jnp.bfloat16, jnp.float32, 0.02),
    "float32 kernels": (jnp.float32, jnp.float64, 1e-5),
    "bfloat16": (jnp.bfloat16, jnp.bfloat16, 0.02),
    "float16": (jnp.float16, jnp.float16, 3e-3),
    "bfloat16 and float16": (jnp.bfloat16, jnp.float16, 0.02),
}
METHODS = {
    "sgd": SGD(),
    "dense": Newton(damping=5.0),
    "cg": HessianFree(damping=1.0, cg=CG(max_steps=3)),
    "warm_lm": HessianFree(damping=1.0, damping_rule=LM, warm_start=0.9),
    "hessian": HessianFree(damping=9.0, curvature="hessian"),
    "finite_difference": HessianFree(damping=9.0, curvature="finite_difference"),
}


def params_of(mix):
    kernels, biases, _ = MIXES[mix]
    return jax.tree.map(
        lambda w: w.astype(kernels if w.ndim == 2 else biases), CASE.params
    )


def run(method, params, batch, devices=1, steps=3):
    """The first step and the last info of a scan over updates."""
    optimizer = method.build(CASE.problem, hfdist.make_mesh(devices))

    def body(carry, _):
        params, state = carry
        updates, state = optimizer.update(None, state, params, batch=batch)
        return (optax.apply_updates(params, updates), state), (updates, state.info)

    carry = params, optimizer.init(params)
    (after, _), (steps_, infos) = jax.jit(
        lambda c: jax.lax.scan(body, c, length=steps)
    )(carry)
    assert dtypes(after) == dtypes(params)
    return jax.tree.map(lambda a: a[0], (steps_, infos))


def dtypes(tree):
    return jax.tree.map(lambda leaf: leaf.dtype, tree)


@cache
def truth(name, mix):
    """The same update at the same, rounded, params in float64."""
    params = optax.tree.cast(params_of(mix), jnp.float64)
    batch = {**BATCH, "inputs": BATCH["inputs"].astype(jnp.float64)}
    return run(METHODS[name], params, batch, steps=1)


QUICK = {"bfloat16 kernels", "float32 kernels"}


@pytest.mark.parametrize("devices", mostly_slow([1, 4], [4]))
@pytest.mark.parametrize("mix", mostly_slow(MIXES, QUICK))
@pytest.mark.parametrize("name", METHODS)
def test_steps_in_mixed_dtypes_are_those_of_float64(name, mix, devices):
    step, info = run(METHODS[name], params_of(mix), BATCH, devices)
    expected, expected_info = truth(name, mix)
    assert relative_error(optax.tree.cast(step, jnp.float64), expected) < MIXES[mix][2]
    assert info.loss.dtype == widen(params_of(mix))["first"]["bias"].dtype
    assert info.loss == pytest.approx(float(expected_info.loss), rel=1e-6)
    assert info.accepted


@pytest.mark.parametrize("rule", choices(damping))
def test_float32_params_may_meet_float64_inputs(rule):
    """As NumPy's are with JAX_ENABLE_X64: the state keeps its dtypes in a scan."""
    params = optax.tree.cast(CASE.params, jnp.float32)
    method = HessianFree(damping=1.0, damping_rule=rule)
    step, info = run(method, params, CASE.batch)
    expected, _ = run(method, CASE.params, CASE.batch)
    assert relative_error(step, expected) < 1e-5
    assert info.loss.dtype == info.damping.dtype == jnp.float32


@pytest.mark.parametrize("devices", [1, 4])
def test_bfloat16_outputs_are_summed_in_float32(devices):
    """ln 3 reads 1.1016 in bfloat16."""
    params = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.bfloat16), CASE.params)
    batch = {**BATCH, "inputs": BATCH["inputs"].astype(jnp.bfloat16)}
    _, info = run(METHODS["cg"], params, batch, devices)
    assert info.loss == pytest.approx(1.0986123, abs=1e-6)


@pytest.mark.parametrize(
    "accumulator", mostly_slow([jnp.float32, jnp.float64], [jnp.float32])
)
def test_products_with_an_accumulator_of_their_own(accumulator):
    def predict(params, batch):
        hidden_BH = jnp.dot(
            batch["inputs"],
            params["first"]["kernel"],
            preferred_element_type=accumulator,
            precision="highest",
        )
        hidden_BH = jnp.tanh(hidden_BH + params["first"]["bias"])
        return hidden_BH @ params["second"]["kernel"] + params["second"]["bias"]

    case = Case("softmax_cross_entropy", examples=3)  # fewer than inputs
    params = optax.tree.cast(CASE.params, jnp.float32)
    batch = {**case.batch, "inputs": case.batch["inputs"].astype(jnp.float32)}
    for method in (METHODS["dense"], METHODS["cg"]):
        optimizer = method.build(case.problem._replace(predict=predict))
        state = optimizer.init(params)
        step, _ = optimizer.update(None, state, params, batch=batch)
        expected, _ = method.build(case.problem).update(
            None, state, params, batch=batch
        )
        assert relative_error(step, expected) < 1e-5
