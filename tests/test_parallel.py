"""Four devices against one."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
import pytest
from cases import METHODS, Case, loop, relative_error
from jax.sharding import Mesh

import hfdist
from hfdist import CG, HessianFree

CASE = Case("softmax_cross_entropy", examples=8, weighted=True)
MESH = hfdist.make_mesh(4)


def shortened(method):
    """The method with few CG steps: long solves amplify the order of summation."""
    is_cg = isinstance(method, HessianFree)
    return replace(method, cg=CG(max_steps=3, rtol=0.0)) if is_cg else method


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("weighted", [False, True])
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


def all_reduces(method):
    """The shapes that each all-reduce of the compiled update carries."""
    optimizer = method.build(CASE.problem, MESH)
    state = optimizer.init(CASE.params)
    update = jax.jit(lambda s, p: optimizer.update(None, s, p, batch=CASE.batch))
    text = update.lower(state, CASE.params).compile().as_text()
    return re.findall(r"= (.*?) all-reduce\(", text)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("sgd", 1),  # gradient with loss and Σ w
        ("hf_gauss_newton", 2),  # the same, and the product inside CG
        ("hf_hessian", 2),
        ("hf_finite_difference", 2),
        ("newton", 1),  # the products of all 39 columns ride along
        ("hf_warm_lm", 3),  # the product at CG's start rides along; the new loss
    ],
)
def test_each_sum_over_devices_is_one_all_reduce(name, count):
    assert len(all_reduces(METHODS[name])) == count


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
