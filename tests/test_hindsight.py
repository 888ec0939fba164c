"""What the next batch says of a step, against dense algebra; and HessianFree()."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hfdist
from cases import Case, loop
from hfdist import CG, HessianFree, Probes
from hfdist.hindsight import KEPT, no_hindsight, rate, seen_after
from hfdist.methods.hessian_free import UNTUNED
from hfdist.quadratics import quadratic
from quick import mostly_slow

CASE = Case("softmax_cross_entropy", examples=8)
OTHER = Case("softmax_cross_entropy", examples=12)


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def at(case, params):
    """The case at other params."""
    return type("At", (Case,), {"params": params})(case.loss, examples=case.examples)


@pytest.mark.parametrize("devices", mostly_slow([1, 2, 4], [1]))
def test_the_rate_is_that_of_the_next_batch(devices):
    """Three batches: of each step but the last, the slope and curvature after it."""
    method = HessianFree(
        damping=0.5, damping_rule="next_batch", cg=CG(max_steps=3, rtol=0)
    )
    optimizer = method.build(CASE.problem, hfdist.make_mesh(devices))
    update = jax.jit(lambda s, p, b: optimizer.update(None, s, p, batch=b))
    params, state = CASE.params, optimizer.init(CASE.params)
    slope = curvature = 0.0
    step_N = np.zeros(len(flat(params)))
    for case in CASE, OTHER, CASE:
        here = at(case, params)
        slope = KEPT * slope + (1 - KEPT) * here.dense_gradient() @ step_N
        curved = step_N @ here.dense_gauss_newton() @ step_N
        curvature = KEPT * curvature + (1 - KEPT) * curved
        damping = float(state.inner.damping)
        updates, state = update(state, params, case.batch)
        step_N, params = flat(updates), jax.tree.map(jnp.add, params, updates)
        seen = state.inner.hindsight
        assert seen.slope == pytest.approx(slope, rel=1e-9)
        assert seen.curvature == pytest.approx(curvature, rel=1e-9)
    t = 1 - slope / curvature
    assert rate(seen) == pytest.approx(t, rel=1e-9)
    moved = np.clip(damping * np.exp(-0.4 * np.clip(t - 0.6, -1, 1)), 5e-4, 0.5)
    assert state.inner.damping == pytest.approx(moved, rel=1e-9)


def test_on_a_quadratic_an_exact_step_was_right_and_half_of_it_too_short():
    a_BN = np.random.default_rng(0).normal(size=(9, 4))
    problem = hfdist.Problem(
        lambda w, b: (b["inputs"] @ w)[:, None], hfdist.losses.squared_error
    )
    batch = {"inputs": jnp.asarray(a_BN), "targets": jnp.ones((9, 1))}
    for learning_rate, expected in (1.0, 1.0), (0.5, 2.0):
        method = hfdist.Newton(
            curvature="gauss_newton", damping=1e-12, learning_rate=learning_rate
        )
        params, _ = loop(method.build(problem), jnp.zeros(4), batch, 1)
        seen = seen_after(
            no_hindsight(jnp.float64), params, quadratic(problem, params, batch)
        )
        assert rate(seen) == pytest.approx(expected, rel=1e-6)


def test_what_is_not_finite_or_not_curved_says_nothing():
    model = quadratic(CASE.problem, CASE.params, CASE.batch)
    seen = seen_after(no_hindsight(jnp.float64), CASE.params, model)
    spoilt = jax.tree.map(lambda w: w * jnp.nan, CASE.params)
    assert seen_after(seen, spoilt, model) == seen
    none = jax.tree.map(jnp.zeros_like, CASE.params)
    assert rate(seen_after(seen, none, model)) == pytest.approx(float(rate(seen)))
    assert jnp.isnan(rate(no_hindsight(jnp.float64)))
    assert jnp.isnan(rate(None))


def test_hessian_free_without_a_damping_is_untuned():
    assert HessianFree() == HessianFree(**UNTUNED)
    assert HessianFree().damping_rule == "next_batch"
    assert HessianFree(cg=CG(max_steps=7)).cg == CG(max_steps=7)
    assert HessianFree(cg=CG(max_steps=7)).preconditioner == "kronecker"
    assert replace(HessianFree(), damping=2.0).step_rule == "two_term"


def test_hessian_free_with_a_damping_is_the_papers():
    method = HessianFree(damping=4.0)
    assert method.learning_rate == 0.5
    assert method.damping_rule == "constant"
    assert method.step_rule == "fixed_rate"
    assert method.preconditioner == "none"
    assert method.probes == Probes()
    assert method.cg == CG(max_steps=10, rtol=1e-3)
