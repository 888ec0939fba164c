"""Curvature as a library, against dense float64 algebra, on one device and on four."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from optax import tree

import hfdist
from cases import Case, relative_error
from hfdist import CG, Dense
from quick import mostly_slow

CASES = [
    Case("softmax_cross_entropy", examples=8, weighted=True),
    Case("log_cosh", "softplus", examples=8),
]
MESHES = {1: None, 4: hfdist.make_mesh(4)}
TRUTHS = {"gauss_newton": Case.dense_gauss_newton, "hessian": Case.dense_hessian}
N = 39
QUICK = [(CASES[0], "gauss_newton", 4)]
each = pytest.mark.parametrize(
    ("case", "kind", "devices"),
    mostly_slow([(c, k, d) for c in CASES for k in TRUTHS for d in MESHES], QUICK),
)


def matrix_of(case, kind="gauss_newton", devices=1, **options):
    mesh = MESHES[devices]
    return hfdist.curvature(
        case.problem, case.params, case.batch, kind, mesh=mesh, **options
    )


def random_vector(case, seed=3):
    key = jax.random.key(seed)
    return tree.random_like(key, case.params, jax.random.normal)


def part(stacked, i):
    return jax.tree.map(lambda a: a[i], stacked)


def flat(x):
    return np.asarray(ravel_pytree(x)[0])


@each
def test_products_and_solves_match_dense_algebra(case, kind, devices):
    c, truth_NN = matrix_of(case, kind, devices), TRUTHS[kind](case)
    v = random_vector(case)
    assert relative_error(c.product(v), truth_NN @ flat(v)) < 1e-12
    check_solve(c, truth_NN, v, CG(max_steps=200, rtol=1e-13))


@pytest.mark.slow
@each
def test_dense_solves_match_dense_algebra(case, kind, devices):
    c, truth_NN = matrix_of(case, kind, devices), TRUTHS[kind](case)
    check_solve(c, truth_NN, random_vector(case), Dense())


def check_solve(c, truth_NN, v, solver):
    shifted_NN = truth_NN + 20 * np.eye(N)  # positive definite, for the Hessian too
    expected_N = np.linalg.solve(shifted_NN, flat(v))
    solution = c.solve(v, damping=20.0, solver=solver)
    assert relative_error(solution.x, expected_N) < 1e-10
    assert not solution.indefinite
    assert solution.relative_residual < 1e-12


@each
def test_diagonals_match_dense_algebra(case, kind, devices):
    c, truth_NN = matrix_of(case, kind, devices), TRUTHS[kind](case)
    assert relative_error(c.diagonal(), np.diag(truth_NN)) < 1e-12
    found = c.diagonal(probes=64, key=jax.random.key(0))
    # The estimate written out, with the same draws.
    keys = jax.random.split(jax.random.key(0), 64)
    probes_PN = np.stack(
        [flat(tree.random_like(k, case.params, jax.random.rademacher)) for k in keys]
    )
    expected_N = np.mean(probes_PN * (probes_PN @ truth_NN), axis=0)
    assert relative_error(found, expected_N) < 1e-12


@each
def test_eigenpairs_match_numpy(case, kind, devices):
    c, truth_NN = matrix_of(case, kind, devices), TRUTHS[kind](case)
    values_N = np.linalg.eigvalsh(truth_NN)
    largest = values_N[np.argsort(-abs(values_N))][:5]
    found = c.lanczos(5)
    np.testing.assert_allclose(found.values_K, largest, rtol=1e-8)
    vectors_KN = np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(found.vectors))
    np.testing.assert_allclose(vectors_KN @ vectors_KN.T, np.eye(5), atol=1e-8)
    rests_KN = vectors_KN @ truth_NN - found.values_K[:, None] * vectors_KN
    np.testing.assert_allclose(
        np.linalg.norm(rests_KN, axis=1), found.residuals_K, atol=1e-12
    )
    assert np.all(found.residuals_K <= 1e-6 * abs(found.values_K))


def test_the_estimated_diagonal_is_unbiased_and_has_the_stated_variance():
    case = CASES[0]
    c, truth_NN = matrix_of(case), case.dense_gauss_newton()
    keys = jax.random.split(jax.random.key(1), 2000)
    draws_RN = np.asarray(
        jax.vmap(lambda key: ravel_pytree(c.diagonal(probes=2, key=key))[0])(keys)
    )
    off_NN = truth_NN - np.diag(np.diag(truth_NN))
    variance_N = np.sum(off_NN**2, axis=1) / 2
    error_N = draws_RN.mean(0) - np.diag(truth_NN)
    assert np.all(abs(error_N) < 5 * np.sqrt(variance_N / 2000) + 1e-14)
    np.testing.assert_allclose(draws_RN.var(0), variance_N, rtol=0.25)


@pytest.mark.parametrize("devices", mostly_slow(MESHES, [4]))
def test_stacked_batches_are_one_batch_of_all_their_examples(devices):
    whole = Case("softmax_cross_entropy", examples=16, weighted=True)
    halves = jax.tree.map(lambda a: a.reshape(2, 8, *a.shape[1:]), whole.batch)
    problem = whole.problem._replace(l2=0.5)
    make = partial(hfdist.curvature, problem, whole.params, mesh=MESHES[devices])
    c, together = make(halves, stacked=True), make(whole.batch)
    v = random_vector(whole)
    truth_NN = whole.dense_gauss_newton() + 0.5 * np.eye(N)
    assert relative_error(c.product(v), truth_NN @ flat(v)) < 1e-12
    assert relative_error(c.solve(v).x, together.solve(v).x) < 1e-10
    assert relative_error(c.diagonal(), np.diag(truth_NN)) < 1e-12
    # Without weights every batch has the same share.
    even = {k: a for k, a in halves.items() if k != "weights"}
    means = [make(part(even, i)) for i in (0, 1)]
    expected = sum(flat(mean.product(v)) for mean in means) / 2
    assert relative_error(make(even, stacked=True).product(v), expected) < 1e-12


def test_a_stacked_batch_that_is_all_padding_has_no_share():
    case = Case("softmax_cross_entropy", examples=16, weighted=True)
    halves = jax.tree.map(lambda a: a.reshape(2, 8, *a.shape[1:]), case.batch)
    halves["weights"] = halves["weights"].at[1].set(0)
    c = hfdist.curvature(case.problem, case.params, halves, stacked=True)
    first = hfdist.curvature(case.problem, case.params, part(halves, 0))
    v = random_vector(case)
    assert relative_error(c.product(v), flat(first.product(v))) < 1e-12


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_either_kind_of_key_draws_the_probes(make):
    c = matrix_of(CASES[0])
    expected = c.diagonal(probes=2, key=jax.random.key(5))
    assert relative_error(c.diagonal(probes=2, key=make(5)), flat(expected)) < 1e-15


def test_float32_and_mixed_dtypes_compute_in_the_working_dtype():
    case = CASES[0]
    narrow = tree.cast(case.params, jnp.float32)
    narrow["second"] = tree.cast(narrow["second"], jnp.bfloat16)
    batch = jax.tree.map(
        lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, case.batch
    )
    c = hfdist.curvature(case.problem, narrow, batch)
    image = c.product(narrow)
    assert {leaf.dtype for leaf in jax.tree.leaves(image)} == {jnp.dtype("float32")}
    c = hfdist.curvature(case.problem, tree.cast(case.params, jnp.float32), batch)
    truth_NN, v = case.dense_gauss_newton(), random_vector(case)
    assert relative_error(c.product(v), truth_NN @ flat(v)) < 1e-5
    found = c.lanczos(3)
    values_N = np.linalg.eigvalsh(truth_NN)
    np.testing.assert_allclose(found.values_K, values_N[:-4:-1], rtol=1e-5)
    assert found.vectors["first"]["kernel"].dtype == jnp.float32


def test_one_program_serves_all_params_and_may_be_part_of_another():
    case, traces = CASES[0], []

    def predict(params, batch):
        traces.append(1)
        return case.predict(params, batch)

    problem = case.problem._replace(predict=predict)
    v = random_vector(case)

    def image(params):
        return hfdist.curvature(problem, params, case.batch).product(v)

    expected = image(case.params)
    once = len(traces)
    image(tree.scale(0.5, case.params))
    assert len(traces) == once
    assert relative_error(jax.jit(image)(case.params), expected) < 1e-12
    c = hfdist.curvature(problem, case.params, case.batch)
    solved = jax.jit(lambda c, v, damping: c.solve(v, damping).x)(c, v, 1.0)
    assert relative_error(solved, c.solve(v, 1.0).x) < 1e-12
    three = jax.tree.map(lambda a: jnp.stack([a, 2 * a, -a]), v)
    images = jax.vmap(c.product)(three)
    assert relative_error(part(images, 1), flat(expected) * 2) < 1e-12


def test_negative_curvature_is_said():
    solution = matrix_of(CASES[0], "hessian").solve(
        random_vector(CASES[0]), solver=CG(max_steps=200, rtol=1e-13)
    )
    assert solution.indefinite


MISTAKES = {
    "a misspelt curvature": (lambda c: c(curvature="hesian"), "perhaps 'hessian'"),
    "replicated, one name": (lambda c: c(replicated="x"), r"use \('x',\)"),
    "an entry not there": (lambda c: c(replicated=("x",)), "which the batch lacks"),
    "another tree": (lambda c: c().product({"first": 1.0}), "like the params"),
    "another shape": (
        lambda c: c().product(jax.tree.map(lambda a: a[..., :1], CASES[0].params)),
        r"\['bias'\] has shape \(1,\): use that of the params, \(4,\)",
    ),
    "negative damping": (
        lambda c: c().solve(CASES[0].params, damping=-1.0),
        "damping is -1.0: use a number that is 0 or more",
    ),
    "no solver": (lambda c: c().solve(CASES[0].params, solver=10), "solver is 10"),
    "no key": (lambda c: c().diagonal(probes=3), "key=jax.random.key"),
    "a number for a key": (lambda c: c().diagonal(2, 0), "key is 0: give it one"),
    "many keys": (
        lambda c: c().diagonal(2, jax.random.split(jax.random.key(0), 3)),
        "give it one, key=jax.random.key",
    ),
    "a schedule of damping": (
        lambda c: c().solve(CASES[0].params, damping=lambda step: 1.0),
        "damping is <function .*: use a number that is 0 or more",
    ),
    "a complex vector": (
        lambda c: c().product(tree.cast(CASES[0].params, complex)),
        r"the vector\['first'\]\['bias'\] is complex",
    ),
    "a negative seed": (lambda c: c().lanczos(2, seed=-1), "seed is -1: use at lea"),
    "no stack": (
        lambda c: c(stacked=True),
        r"batch\['labels'\] has shape \(8,\): stacked batches have leaves \(S, B",
    ),
    "a replicated entry that is not stacked": (
        lambda c: c(
            batch=jax.tree.map(lambda a: a[None], CASES[0].batch)
            | {"scale": jnp.ones(3)},
            stacked=True,
            replicated=("scale",),
        ),
        r"and \(S, …\) where replicated",
    ),
    "no probe": (lambda c: c().diagonal(0, jax.random.key(0)), "at least 1"),
    "too many eigenpairs": (lambda c: c().lanczos(N), "less than the 39 params"),
    "eigenpairs in a program": (
        lambda c: jax.jit(lambda p: c(params=p).lanczos(2).values_K)(CASES[0].params),
        "outside jax.jit",
    ),
    "weights 0": (
        lambda c: c(batch={**CASES[0].batch, "weights": jnp.zeros(8)}).lanczos(2),
        "not finite",
    ),
    "an uneven share": (
        lambda c: c(
            mesh=MESHES[4], batch=jax.tree.map(lambda a: a[:7], CASES[0].batch)
        ).product(CASES[0].params),
        "cannot share evenly",
    ),
    "integer params": (lambda c: c(params={"w": jnp.arange(3)}), "is int"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_message(name):
    case = CASES[0]
    make = partial(hfdist.curvature, case.problem)
    mistake, message = MISTAKES[name]

    def curvature(params=case.params, batch=case.batch, **options):
        return make(params, batch, **options)

    with pytest.raises(hfdist.UsageError, match=message):
        mistake(curvature)


def test_a_predict_that_cannot_be_hashed_is_named():
    class Model(list):
        def __call__(self, params, batch):
            return CASES[0].predict(params, batch)

    problem = CASES[0].problem._replace(predict=Model())
    with pytest.raises(hfdist.UsageError, match="wrap it in a function"):
        hfdist.curvature(problem, CASES[0].params, CASES[0].batch)
