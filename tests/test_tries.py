"""Several λ in one update: the steps that are taken, with fewer matrices."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import hfdist
from cases import LOSSES
from hfdist import Newton, Refusal

ONCE = Newton(
    damping=1e-6,
    learning_rate=1.0,
    curvature="gauss_newton",
    damping_rule="nielsen",
    tries=1,
)
RETRIED = replace(ONCE, tries=10)
EXAMPLES, PARAMS = 20, 3


def predict(params, batch):
    """A frequency to find: far from it most full steps raise the loss."""
    x_B = batch["inputs"][:, 0]
    return (params[0] * jnp.sin(params[1] * x_B) + params[2])[:, None]


PROBLEM = hfdist.Problem(predict, LOSSES["squared_error"])
X = np.linspace(-2, 2, EXAMPLES)
BATCH = {
    "inputs": jnp.asarray(X)[:, None],
    "targets": jnp.asarray(np.sin(1.5 * X) + 0.3)[:, None],
}
START = jnp.array([0.2, 0.3, 0.0])


def losses_taken(method, updates):
    """(λ, loss) of every step taken, and how many were refused."""
    optimizer = method.build(PROBLEM)
    update = jax.jit(lambda s, p: optimizer.update(None, s, p, batch=BATCH))
    params, state, taken, refused = START, optimizer.init(START), [], 0
    for _ in range(updates):
        updates_, state = update(state, params)
        params = params + updates_
        refused += not state.info.accepted
        if state.info.accepted:
            taken.append((float(state.info.damping), float(state.info.loss)))
    return np.array(taken), refused


def test_the_steps_are_those_of_one_a_try():
    once, refused = losses_taken(ONCE, 30)
    retried, never = losses_taken(RETRIED, 15)
    assert refused >= 3
    assert never == 0
    count = min(len(once), len(retried))
    assert count >= 10
    assert retried[:count] == pytest.approx(once[:count], rel=1e-6, abs=1e-12)


def test_the_last_try_is_reported_where_all_are_refused():
    optimizer = replace(RETRIED, tries=2, damping=1e-10).build(PROBLEM)
    state = optimizer.init(START)
    updates, state = optimizer.update(None, state, START, batch=BATCH)
    assert state.info.refusal == Refusal.LOSS_ROSE
    assert state.info.damping == pytest.approx(2e-10)
    assert state.inner.damping == pytest.approx(8e-10)
    assert state.inner.updates == 1
    assert np.all(np.asarray(updates) == 0)


def products(jaxpr):
    """Shapes of all matrix products of a program and of those within it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.outvars[0].aval.shape
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


def test_a_try_makes_no_matrix():
    optimizer = RETRIED.build(PROBLEM)
    program = jax.make_jaxpr(lambda s, p: optimizer.update(None, s, p, batch=BATCH))(
        optimizer.init(START), START
    )
    whole = list(products(program.jaxpr))
    assert whole.count((PARAMS, PARAMS)) == 1
    loops = [e for e in program.jaxpr.eqns if e.primitive.name == "while"]
    (loop,) = loops
    body = list(products(loop.params["body_jaxpr"].jaxpr))
    assert (PARAMS, PARAMS) not in body
