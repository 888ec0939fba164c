"""Four devices against one."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import hfdist
from cases import METHODS, Case, loop, relative_error
from communication.compiled import collectives_of
from hfdist import CG, HessianFree, parallel
from quick import mostly_slow

CASE = Case("softmax_cross_entropy", examples=8, weighted=True)
MESH = hfdist.make_mesh(4)


def shortened(method):
    """The method with few CG steps: long solves amplify the order of summation."""
    is_cg = isinstance(method, HessianFree)
    return replace(method, cg=CG(max_steps=3, rtol=0.0)) if is_cg else method


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("weighted", mostly_slow([False, True], [True]))
def test_many_devices_take_the_steps_of_one(name, weighted):
    case = Case("softmax_cross_entropy", examples=8, weighted=weighted)
    method = shortened(METHODS[name])
    one, one_infos = loop(method.build(case.problem), case.params, case.batch)
    many, infos = loop(method.build(case.problem, MESH), case.params, case.batch)
    # A difference of gradients divides the rounding by ε.
    tolerance = 1e-6 if name == "hf_finite_difference" else 1e-10
    assert relative_error(many, one) < tolerance
    for a, b in zip(infos, one_infos, strict=True):
        assert a.loss == pytest.approx(float(b.loss), rel=tolerance)


N, FLOAT, INT = 39, 8, 8  # parameters of the case; bytes of its numbers
IN_LOOP = True
GRADIENT = ("all-reduce", (N + 2) * FLOAT, not IN_LOOP)  # with Σ w l and Σ w
LOSS = ("all-reduce", 3 * FLOAT, not IN_LOOP)  # with the squares of its rounding
FORM = ("all-reduce", 4 * FLOAT, not IN_LOOP)  # ⟨v, C v⟩ of two vectors
LOSS_AND_FORM = ("all-reduce", (3 + 1) * FLOAT, not IN_LOOP)  # of the step before
PROBE = ("all-reduce", (N + 1) * FLOAT, not IN_LOOP)  # with Σ w
# Three products at once, with the gradient of their own linearisation.
SKETCH = ("all-reduce", (3 * N + N + 2) * FLOAT, not IN_LOOP)
PRODUCT = ("all-reduce", N * FLOAT, IN_LOOP)
# XLA lets the product at CG's start ride along with the gradient.
GRADIENT_AND_PRODUCT = ("all-reduce", (2 * N + 2) * FLOAT, not IN_LOOP)
# All columns at once, with the gradient: they are fewer than a block.
MATRIX = ("all-reduce", (N * N + N + 2) * FLOAT, not IN_LOOP)
M = 24  # outputs: 3 of 8 examples
# The examples and K once; J b, for each of three solves with one factor Jᵀ u and the
# residual's product, and J of the residual; with the last the loss.
BY_OUTPUTS = [
    ("all-reduce", (N + 3) * FLOAT, not IN_LOOP),
    *(("all-gather", n * FLOAT, not IN_LOOP) for n in (8 * 5, 8, M * M, M)),
    *[PRODUCT] * 5,
    ("all-reduce", (N + 3) * FLOAT, IN_LOOP),
    *[("all-gather", M * FLOAT, IN_LOOP)] * 2,
]
COLLECTIVES = {
    "sgd": [GRADIENT],
    "hf_gauss_newton": [GRADIENT, PRODUCT],
    "hf_hessian": [GRADIENT, PRODUCT],
    "hf_layerwise": [GRADIENT, PRODUCT],
    "hf_finite_difference": [GRADIENT, PRODUCT],
    "hf_warm_lm": [GRADIENT_AND_PRODUCT, PRODUCT, LOSS],
    "hf_kronecker": [GRADIENT, PROBE, PRODUCT, FORM],
    "hf_untuned": [GRADIENT, PROBE, FORM, LOSS_AND_FORM],
    "hf_nystrom": [GRADIENT, SKETCH, PRODUCT],
    "newton": [MATRIX],
    "newton_gauss_newton_lm": BY_OUTPUTS,
    "adam": [GRADIENT],
}


def collectives_in(optimizer, case):
    """Those of a compiled step over MESH."""
    state = optimizer.init(case.params)
    update = jax.jit(lambda s, p, b: optimizer.update(None, s, p, batch=b))
    rows = NamedSharding(MESH, PartitionSpec("data"))
    batch = jax.device_put(case.batch, rows)
    return collectives_of(update.lower(state, case.params, batch).compile().as_text())


def trace(optimizer, case):
    """An update, as far as tracing."""
    state = optimizer.init(case.params)
    jax.eval_shape(
        lambda s, p, b: optimizer.update(None, s, p, batch=b),
        state,
        case.params,
        case.batch,
    )


@pytest.mark.parametrize("name", METHODS)
def test_the_collectives_of_a_compiled_step_are_these_and_no_more(name):
    optimizer = METHODS[name].build(CASE.problem, MESH)
    found = [collective[:3] for collective in collectives_in(optimizer, CASE)]
    assert sorted(found) == sorted(COLLECTIVES[name])


@pytest.mark.parametrize("name", METHODS)
def test_no_value_that_differs_between_devices_is_taken_for_one_that_does_not(
    name, monkeypatch
):
    """JAX's own check, while tracing: no all-reduce is forgotten."""
    monkeypatch.setattr(parallel, "CHECK_VMA", True)
    trace(METHODS[name].build(CASE.problem, MESH), CASE)


def test_a_batch_that_cannot_be_shared_is_refused():
    case = Case("softmax_cross_entropy", examples=7)
    optimizer = METHODS["sgd"].build(case.problem, MESH)
    with pytest.raises(ValueError, match="7 examples, which 4 devices cannot share"):
        optimizer.update(
            None, optimizer.init(case.params), case.params, batch=case.batch
        )


def test_a_mesh_with_other_axes_is_refused():
    mesh = Mesh(jax.devices(), ("model",))
    with pytest.raises(ValueError, match=r"named 'data'.*make_mesh"):
        METHODS["sgd"].build(CASE.problem, mesh)


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"--devices 99, but .* 4 cpu device"):
        hfdist.make_mesh(99)


def test_a_foreign_loop_over_many_devices():
    """The README's loop with a mesh, inside a scan, chained with clipping."""
    optimizer = optax.chain(
        METHODS["hf_gauss_newton"].build(CASE.problem, MESH),
        optax.clip_by_global_norm(0.1),
    )

    def body(carry, _):
        params, state = carry
        updates, state = optimizer.update(None, state, params, batch=CASE.batch)
        params = optax.apply_updates(params, updates)
        return (params, state), (state[0].info.loss, optax.tree.norm(updates))

    carry = CASE.params, optimizer.init(CASE.params)
    _, (losses, norms) = jax.jit(lambda c: jax.lax.scan(body, c, length=5))(carry)
    assert jnp.all(jnp.diff(losses) < 0)
    assert jnp.all(norms <= 0.1 + 1e-12)
