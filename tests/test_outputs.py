"""Gauss-Newton steps solved for the outputs, against dense float64 algebra."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hfdist
from cases import LOSSES, loss_and_output_hessian, relative_error
from hfdist import HessianFree, Newton
from hfdist.outputs import outputs_of
from hfdist.parallel import collectives, data_parallel
from quick import mostly_slow
from test_reduction import EXAMPLES, OUTPUTS, TIGHT, batch_of, problem_of

DAMPING = 0.1
BY_OUTPUTS = Newton(damping=DAMPING, learning_rate=1.0, curvature="gauss_newton")
REDUCED = replace(BY_OUTPUTS, output_space=False)
WAYS = {
    "outputs": BY_OUTPUTS,
    "inputs": REDUCED,
    "all params": replace(REDUCED, input_reduction=False),
    "CG": HessianFree(damping=DAMPING, learning_rate=1.0, cg=TIGHT),
}
SAID = "solves in the span of the outputs: 24 unknowns, not 111"


def dense_step(
    problem, params, batch, loss, gradient_N=None, damping=DAMPING, scales_N=None
):
    """-(C + λD)⁻¹ (g + μ w), C = G + μI, example by example in numpy.

    D = I, or the greatest of scales_N and diag C.
    """
    w_N, unravel = ravel_pytree(params)
    j_BCN = np.asarray(jax.jacobian(lambda w: problem.predict(unravel(w), batch))(w_N))
    z_BC = np.asarray(problem.predict(params, batch))
    t_BC = np.asarray(
        batch.get("targets", np.eye(OUTPUTS)[np.asarray(batch.get("labels", 0))])
    )
    weights_B = np.asarray(batch.get("weights", np.ones(len(z_BC))))
    weights_B = weights_B / weights_B.sum()
    g_NN = np.zeros((w_N.size, w_N.size))
    for weight, j_CN, z_C, t_C in zip(weights_B, j_BCN, z_BC, t_BC, strict=True):
        g_NN += weight * j_CN.T @ loss_and_output_hessian(loss, z_C, t_C)[1] @ j_CN
    if gradient_N is None:
        mean = jax.grad(lambda z: weights_B @ problem.loss(z, batch))(z_BC)
        gradient_N = np.einsum("bcn,bc->n", j_BCN, np.asarray(mean))
        gradient_N = gradient_N + problem.l2 * np.asarray(w_N)
    c_NN = g_NN + problem.l2 * np.eye(w_N.size)
    d_N = 1
    if scales_N is not None:
        d_N = np.maximum(scales_N, np.diagonal(c_NN))
        d_N[d_N == 0] = 1
    return -np.linalg.solve(c_NN + damping * d_N * np.eye(w_N.size), gradient_N)


def step_of(method, problem, params, batch, devices=1, gradient=None, **others):
    optimizer = method.build(problem, hfdist.make_mesh(devices))
    update = jax.jit(
        lambda s, p, b: optimizer.update(gradient, s, p, batch=b, **others)
    )
    return update(optimizer.init(params), params, batch)


QUICK = {
    ("outputs", "softmax_cross_entropy", 0.3, 2),
}


@pytest.mark.parametrize(
    ("way", "loss", "l2", "devices"),
    mostly_slow(itertools.product(WAYS, LOSSES, [0.0, 0.3], [1, 2, 4]), QUICK),
)
def test_every_way_takes_the_dense_step(way, loss, l2, devices):
    """With two equal rows, a row of zeros, and weights of which one is 0."""
    problem, params = problem_of((6,), loss)
    problem, batch = problem._replace(l2=l2), batch_of(loss)
    assert BY_OUTPUTS.explain(problem, params, batch) == SAID
    step, state = step_of(WAYS[way], problem, params, batch, devices)
    assert relative_error(step, dense_step(problem, params, batch, loss)) < 1e-8
    assert state.info.accepted
    assert not state.info.indefinite


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_the_kernel_is_that_of_the_rooted_jacobian(devices):
    """K = J̃ J̃ᵀ has the eigenvalues of G = J̃ᵀ J̃ that are not 0."""
    problem, params = problem_of((6,))
    mesh = hfdist.make_mesh(devices)

    def kernel(gradient, state, params, batch):
        return outputs_of(problem, params, batch, collectives(mesh)).kernel(5)

    run = jax.jit(data_parallel(kernel, mesh))
    k_MM = run(None, None, params, batch_of())
    g_NN = hfdist.curvature(problem, params, batch_of()).rows(np.eye(111))
    assert k_MM.shape == (EXAMPLES * OUTPUTS,) * 2
    assert np.linalg.eigvalsh(k_MM) == pytest.approx(
        np.linalg.eigvalsh(g_NN)[-24:], abs=1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_gradient_of_other_examples(devices):
    """It need not lie in the range of J̃ᵀ."""
    problem, params = problem_of((6,))
    batch, rng = batch_of(), np.random.default_rng(4)
    gradient_N = rng.normal(size=111)
    gradient = ravel_pytree(params)[1](jnp.asarray(gradient_N))
    step, _ = step_of(BY_OUTPUTS, problem, params, batch, devices, gradient)
    expected_N = dense_step(problem, params, batch, "softmax_cross_entropy", gradient_N)
    assert relative_error(step, expected_N) < 1e-8


@pytest.mark.parametrize("dtype", mostly_slow(["float32", "float64"], ["float64"]))
def test_a_small_damping_costs_no_digits(dtype):
    """Of the residual, where ‖K‖ / λ is some 1e7 and loses seven."""
    problem, params = problem_of((6,), "squared_error")
    arrays = params, batch_of("squared_error")
    low = jax.tree.map(lambda a: a.astype(dtype), arrays)
    small = {"float32": 1e-4, "float64": 1e-7}[dtype]
    _, state = step_of(replace(BY_OUTPUTS, damping=small), problem, *low)
    assert state.info.cg_residual < 100 * jnp.finfo(dtype).eps


@pytest.mark.slow
def test_networks_that_mix_the_examples_of_a_share():
    """As BatchNorm in training does: each device by its own."""
    problem, params = problem_of((6,))

    def mixing(params, batch):
        z = problem.predict(params, batch)
        return (z - z.mean(0)) / (z.std(0) + 0.1)

    mixed = problem._replace(predict=mixing)
    assert BY_OUTPUTS.explain(mixed, params, batch_of()) == SAID
    for devices in (1, 2):
        steps = [
            step_of(WAYS[way], mixed, params, batch_of(), devices)[0]
            for way in ("outputs", "all params")
        ]
        assert relative_error(*steps) < 1e-8


@pytest.mark.slow
def test_entries_that_are_replicated_stay_whole():
    problem, params = problem_of((6,))
    batch = batch_of() | {"scale": jnp.array([1.0, 2.0, 0.5])}

    def scaled(params, batch):
        return problem.predict(params, batch) * batch["scale"]

    scaling = problem._replace(predict=scaled)
    steps = []
    for devices in (1, 2):
        optimizer = BY_OUTPUTS.build(
            scaling, hfdist.make_mesh(devices), replicated=("scale",)
        )
        state = optimizer.init(params)
        steps.append(optimizer.update(None, state, params, batch=batch)[0])
    assert relative_error(*steps) < 1e-10


def test_what_is_said_of_where_it_does_not():
    problem, params = problem_of((6,))
    batch = batch_of()
    uneven = jax.tree.map(lambda _: 0.1, params)
    wide = {"w": jnp.ones((200, 65))}
    many = hfdist.Problem(lambda p, b: b["inputs"] @ p["w"], LOSSES["log_cosh"])
    inputs = {"inputs": jnp.ones((1, 200)), "targets": jnp.ones((1, 65))}
    assert BY_OUTPUTS.explain(problem, params, batch) == SAID
    for method, given in {
        REDUCED: (problem, params, batch),
        replace(BY_OUTPUTS, damping=0.0): (problem, params, batch),
        replace(BY_OUTPUTS, curvature="hessian"): (problem, params, batch),
        replace(BY_OUTPUTS, learning_rate=0.5): (
            problem._replace(l2=uneven),
            params,
            batch,
        ),
        replace(BY_OUTPUTS, learning_rate=0.6): (many, wide, inputs),
    }.items():
        assert "outputs" not in method.explain(*given)
    said = BY_OUTPUTS.explain(problem, params, batch, micro_batch_size=4)
    assert "outputs" not in said
