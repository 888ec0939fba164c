"""Momentum, Adam and their rates against numpy, update by update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hfdist
from cases import loop, relative_error
from hfdist import SGD, Adam, Momentum

# f(w) = Σ aᵢ wᵢ² / 2, of which the gradient is a ∘ w.
A_N = np.array([1.0, 4.0, 0.3])
PROBLEM = hfdist.Problem(
    lambda w, batch: batch["inputs"] @ jnp.diag(w["a"]),
    lambda z, batch: jnp.sum(z**2, -1) / 2,
)
BATCH = {"inputs": jnp.asarray(np.sqrt(A_N))[None]}
START_N = np.array([1.0, -2.0, 0.5])


def after(method, steps=6):
    params, infos = loop(
        method.build(PROBLEM), {"a": jnp.asarray(START_N)}, BATCH, steps
    )
    assert all(info.accepted for info in infos)
    return np.asarray(params["a"])


@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_is_the_recurrence(nesterov):
    w_N, m_N = START_N.copy(), np.zeros(3)
    for _ in range(6):
        g_N = A_N * w_N
        m_N = g_N + 0.8 * m_N
        w_N = w_N - 0.1 * (g_N + 0.8 * m_N if nesterov else m_N)
    method = Momentum(learning_rate=0.1, momentum=0.8, nesterov=nesterov)
    assert relative_error(after(method), w_N) < 1e-14


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_adam_is_the_recurrence(weight_decay):
    w_N, m_N, v_N = START_N.copy(), np.zeros(3), np.zeros(3)
    for k in range(1, 7):
        g_N = A_N * w_N
        m_N = 0.7 * m_N + 0.3 * g_N
        v_N = 0.95 * v_N + 0.05 * g_N**2
        direction_N = m_N / (1 - 0.7**k) / (np.sqrt(v_N / (1 - 0.95**k)) + 1e-3)
        w_N = w_N - 0.1 * (direction_N + weight_decay * w_N)
    method = Adam(
        learning_rate=0.1, b1=0.7, b2=0.95, eps=1e-3, weight_decay=weight_decay
    )
    assert relative_error(after(method), w_N) < 1e-12


@pytest.mark.parametrize(
    ("warmup_steps", "decay_steps"), [(0, None), (3, None), (0, 5), (2, 5)]
)
def test_the_rate_rises_and_falls_as_it_says(warmup_steps, decay_steps):
    w_N, rates = START_N.copy(), []
    for k in range(7):
        rate = 0.1 * min(1, (k + 1) / (warmup_steps + 1))
        if decay_steps and k > warmup_steps:
            part = min(1, (k - warmup_steps) / (decay_steps - warmup_steps))
            rate *= (1 + np.cos(np.pi * part)) / 2
        rates.append(rate)
        w_N = w_N - rate * A_N * w_N
    assert decay_steps is None or abs(rates[-1]) < 1e-17
    method = SGD(learning_rate=0.1, warmup_steps=warmup_steps, decay_steps=decay_steps)
    assert relative_error(after(method, 7), w_N) < 1e-7  # optax counts in float32


def test_a_rate_may_be_traced_and_a_schedule_of_ones_own():
    def step(rate):
        optimizer = SGD(learning_rate=rate, warmup_steps=1, decay_steps=4).build(
            PROBLEM
        )
        params = {"a": jnp.asarray(START_N)}
        return optimizer.update(None, optimizer.init(params), params, batch=BATCH)[0]

    updates = jax.jit(jax.vmap(step))(jnp.array([0.2, 0.4]))
    assert relative_error(updates["a"][1], -0.2 * A_N * START_N) < 1e-6
    schedule = optax.constant_schedule(0.1)
    own = after(Momentum(learning_rate=schedule))
    assert relative_error(own, after(Momentum(learning_rate=0.1))) < 1e-7


@pytest.mark.parametrize("method", [Momentum(), Adam(warmup_steps=2)], ids=["m", "a"])
def test_a_refused_update_leaves_the_memory_as_it_was(method):
    optimizer, params = method.build(PROBLEM), {"a": jnp.asarray(START_N)}
    update = jax.jit(lambda s, batch: optimizer.update(None, s, params, batch=batch))
    _, state = update(optimizer.init(params), BATCH)
    updates, later = update(state, {"inputs": BATCH["inputs"] * jnp.nan})
    assert later.info.refusal == hfdist.Refusal.LOSS_NOT_FINITE
    assert not np.any(ravel_pytree(updates)[0])
    assert jax.tree.all(jax.tree.map(np.array_equal, state.inner, later.inner))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Momentum(momentum=1.0), "a number that is 0 or more and less than 1"),
        (lambda: Adam(b2=1), "b2 is 1: use a number that is 0 or more and less than 1"),
        (lambda: Adam(eps=0.0), "eps is 0.0: use a number that is more than 0"),
        (lambda: Adam(weight_decay=-1), "weight_decay is -1"),
        (lambda: SGD(warmup_steps=-1), "warmup_steps is -1: use at least 0"),
        (lambda: SGD(warmup_steps=5, decay_steps=5), "decay_steps is 5: use more than"),
        (
            lambda: SGD(learning_rate=optax.constant_schedule(1.0), decay_steps=5),
            "learning_rate is a schedule, and warmup_steps",
        ),
        (
            lambda: Momentum(momentum=optax.constant_schedule(0.9)),
            "momentum is a schedule: use a number",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(make, message):
    with pytest.raises(hfdist.UsageError, match=message):
        make()
