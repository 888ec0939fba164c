"""Levenberg-Marquardt damping to convergence, beyond it, and out of it again."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hfdist
from cases import LM
from hfdist import CG, HessianFree, Newton, Refusal
from quick import mostly_slow


def run(optimizer, carry, batch, steps):
    """The carry after so many steps, and their infos, stacked."""

    def body(carry, _):
        params, state = carry
        updates, state = optimizer.update(None, state, params, batch=batch)
        return (optax.apply_updates(params, updates), state), state.info

    return jax.jit(lambda c: jax.lax.scan(body, c, length=steps))(carry)


def start(method, problem, params):
    optimizer = method.build(problem)
    return optimizer, (params, optimizer.init(params))


@pytest.mark.parametrize("learning_rate", [0.5, 1.0])
def test_a_classifier_that_fits_its_batch_learns_new_labels_within_ten_steps(
    learning_rate,
):
    """The README's example, in float32, where its loss goes below rounding."""
    a, b, c, d = jax.random.split(jax.random.key(0), 4)
    params = {
        "first": jax.random.normal(a, (20, 8), jnp.float32) / 4,
        "second": jnp.zeros((8, 3), jnp.float32),
    }
    batch = {
        "inputs": jax.random.normal(b, (64, 20), jnp.float32),
        "labels": jax.random.randint(c, (64,), 0, 3),
    }
    problem = hfdist.Problem(
        lambda p, b: jnp.tanh(b["inputs"] @ p["first"]) @ p["second"],
        hfdist.losses.softmax_cross_entropy,
    )
    method = HessianFree(damping=0.1, learning_rate=learning_rate, damping_rule=LM)
    optimizer, carry = start(method, problem, params)
    carry, infos = run(optimizer, carry, batch, 600)
    assert infos.loss[-1] < 1e-6
    assert np.all(np.isfinite(infos.damping))
    assert infos.damping.max() <= 0.1
    assert np.all(infos.accepted[-300:])
    batch["labels"] = jax.random.randint(d, (64,), 0, 3)
    _, infos = run(optimizer, carry, batch, 11)
    assert infos.loss[-1] < 0.1 * infos.loss[0]


METHODS = {
    "cg": HessianFree(damping=1.0, learning_rate=1.0, damping_rule=LM),
    "half": HessianFree(damping=1.0, learning_rate=0.5, damping_rule=LM),
    "warm": HessianFree(
        damping=1.0, learning_rate=1.0, damping_rule=LM, warm_start=0.95
    ),
    "long": HessianFree(
        damping=1.0,
        learning_rate=1.0,
        damping_rule=LM,
        cg=CG(max_steps=100, rtol=1e-8),
    ),
    "dense": Newton(damping=1.0, learning_rate=1.0, damping_rule=LM),
}
QUICK = {"cg", "dense"}
SCALES = {
    "plain": lambda x_BD: x_BD,
    "ill-conditioned": lambda x_BD: x_BD * 10.0 ** -np.arange(0, 5, 0.5),
    "far from 0": lambda x_BD: x_BD + 100,  # residuals far below the outputs
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(
    "name",
    mostly_slow(METHODS, QUICK),
)
def test_linear_regression_learns_new_targets_within_ten_steps(name, dtype, scale):
    method = METHODS[name]
    rng = np.random.default_rng(0)
    x_BD = SCALES[scale](rng.normal(size=(100, 10)))
    noise = 0.1

    def targets():
        return x_BD @ rng.normal(size=(10, 2)) + noise * rng.normal(size=(100, 2))

    def batch_of(t_BC):
        return {"inputs": jnp.asarray(x_BD, dtype), "targets": jnp.asarray(t_BC, dtype)}

    problem = hfdist.Problem(lambda p, b: b["inputs"] @ p, hfdist.losses.squared_error)
    optimizer, carry = start(method, problem, jnp.zeros((10, 2), dtype))
    carry, infos = run(optimizer, carry, batch_of(targets()), 500)
    assert np.all((infos.damping >= 0.999e-10) & (infos.damping <= 1.0))
    assert np.mean(~infos.accepted) < 0.05
    t_BC = targets()
    residual_BC = t_BC - x_BD @ np.linalg.lstsq(x_BD, t_BC, rcond=None)[0]
    best = np.mean(np.sum(residual_BC**2, 1))
    _, infos = run(optimizer, carry, batch_of(t_BC), 11)
    # What is left of the loss above the best after ten steps that go half the way.
    left = 0.25**10 if method.learning_rate == 0.5 else 1e-6
    assert infos.loss[-1] < 1.1 * best + 2 * left * infos.loss[0]


def test_batches_that_are_not_finite_do_not_move_damping():
    problem = hfdist.Problem(lambda p, b: b["inputs"] @ p, hfdist.losses.squared_error)
    optimizer, carry = start(METHODS["cg"], problem, jnp.ones((3, 1)))
    batch = {"inputs": jnp.eye(3), "targets": jnp.full((3, 1), jnp.nan)}
    carry, infos = run(optimizer, carry, batch, 50)
    assert np.all(infos.refusal == Refusal.LOSS_NOT_FINITE)
    assert infos.damping[-1] == 1.0
    batch["targets"] = jnp.zeros((3, 1))
    _, infos = run(optimizer, carry, batch, 20)
    assert infos.loss[-1] < 1e-6


def test_bfloat16_steps_below_rounding_keep_damping():
    """Steps that round to nothing: they are no evidence that λ is too small."""
    problem = hfdist.Problem(lambda p, b: b["inputs"] @ p, hfdist.losses.squared_error)
    rng = np.random.default_rng(1)
    batch = {
        "inputs": jnp.asarray(rng.normal(size=(50, 4)), jnp.bfloat16),
        "targets": jnp.asarray(rng.normal(size=(50, 1)), jnp.bfloat16),
    }
    optimizer, carry = start(METHODS["half"], problem, jnp.ones((4, 1), jnp.bfloat16))
    _, infos = run(optimizer, carry, batch, 300)
    assert infos.damping[-1] <= 1.0
    assert np.mean(infos.accepted) > 0.9


@pytest.mark.parametrize("method", [METHODS["cg"], METHODS["dense"]])
def test_a_step_that_is_nothing_beside_another_param_is_judged(method):
    """An arctangent, which a full step overshoots; the params are 26 orders apart."""

    def predict(p, batch):
        return jnp.arctan(1e20 * p["small"] * batch["inputs"]) + 0 * p["large"]

    problem = hfdist.Problem(predict, hfdist.losses.squared_error)
    params = {"small": jnp.float64(3e-20), "large": jnp.float64(1e6)}
    optimizer, carry = start(method, problem, params)
    batch = {"inputs": jnp.ones((1, 1)), "targets": jnp.zeros((1, 1))}
    _, infos = run(optimizer, carry, batch, 1)
    assert infos.loss_after[0] > infos.loss[0]
    assert infos.refusal[0] == Refusal.LOSS_ROSE
