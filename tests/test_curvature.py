"""Values, gradients and curvature products against dense float64 algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hfdist
from cases import CASES, ONE_DEVICE, Case, relative_error
from hfdist.quadratics import quadratic, value_and_gradient
from hfdist.solvers.dense import materialise
from quick import mostly_slow

# The kinds of curvature, each with its dense truth and its relative accuracy.
TRUTHS = {
    "gauss_newton": (Case.dense_gauss_newton, 1e-10),
    "layerwise_gauss_newton": (Case.dense_layerwise, 1e-10),
    "hessian": (Case.dense_hessian, 1e-10),
    "finite_difference": (Case.dense_hessian, 1e-5),
}
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_kind = pytest.mark.parametrize("kind", TRUTHS)


def model_of(case, kind):
    return quadratic(case.problem, case.params, case.batch, kind, ONE_DEVICE)


@pytest.mark.parametrize(
    "case", mostly_slow(CASES, [c for c in CASES if c.weighted]), ids=str
)
@each_kind
def test_quadratic_model(case, kind):
    @jax.jit
    def dense_model(params):
        model = quadratic(case.problem, params, case.batch, kind, ONE_DEVICE)
        # One column at a time, as the product is documented, and all of them.
        return model.value, model.gradient, materialise(model.product, params, 1)

    value, gradient, c_NN = dense_model(case.params)
    truth, tolerance = TRUTHS[kind]
    assert abs(value - case.dense_value()) < 1e-12 * abs(case.dense_value())
    assert relative_error(gradient, case.dense_gradient()) < 1e-12
    assert relative_error(c_NN, truth(case)) < tolerance
    if kind.endswith("gauss_newton"):
        eigenvalues = np.linalg.eigvalsh(c_NN)
        assert eigenvalues[0] >= -1e-10 * eigenvalues[-1]


@each_kind
def test_the_matrix_written_down(kind):
    """With l2, so many columns at a time that the last are fewer."""
    case = Case("softmax_cross_entropy", examples=8, weighted=True)
    problem = case.problem._replace(l2=0.3)
    model = quadratic(problem, case.params, case.batch, kind, ONE_DEVICE)
    truth, tolerance = TRUTHS[kind]
    plain_NN = truth(case)
    expected_NN = plain_NN + 0.3 * np.eye(len(plain_NN))
    assert (
        relative_error(jax.jit(model.matrix, static_argnums=0)(7), expected_NN)
        < tolerance
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_value_and_gradient_alone(weighted):
    case = Case("softmax_cross_entropy", weighted=weighted)
    arguments = (case.problem, case.params, case.batch, ONE_DEVICE)
    value, gradient = value_and_gradient(*arguments)
    assert abs(value - case.dense_value()) < 1e-12
    assert relative_error(gradient, case.dense_gradient()) < 1e-12


def test_finite_difference_of_zero_is_zero():
    case = Case("softmax_cross_entropy")
    product = model_of(case, "finite_difference").product
    zero = jax.tree.map(jnp.zeros_like, case.params)
    assert not np.any(ravel_pytree(product(zero))[0])


@each_kind
def test_padding_with_weight_0_changes_nothing(kind):
    case = Case("softmax_cross_entropy")
    pad = jax.tree.map(lambda a: jnp.concatenate([a, a[:3]]), case.batch)
    pad["weights"] = jnp.asarray([1.0] * 7 + [0.0] * 3)
    padded = quadratic(case.problem, case.params, pad, kind, ONE_DEVICE)
    plain = model_of(case, kind)
    assert abs(padded.value - plain.value) < 1e-14
    assert relative_error(padded.gradient, plain.gradient) < 1e-13
    v = case.params
    assert relative_error(padded.product(v), plain.product(v)) < 1e-6


def test_outputs_may_be_a_pytree():
    """Two heads, one loss of both: the same curvature as one head of their sum."""
    case = Case("softmax_cross_entropy")

    def two_heads(params, batch):
        z_BC = case.predict(params, batch)
        return {"a": 0.25 * z_BC, "b": 0.75 * z_BC}

    def loss_of_both(heads, batch):
        return hfdist.losses.softmax_cross_entropy(heads["a"] + heads["b"], batch)

    problem = hfdist.Problem(two_heads, loss_of_both)
    model = quadratic(problem, case.params, case.batch, "gauss_newton", ONE_DEVICE)
    plain = model_of(case, "gauss_newton")
    v = case.params
    assert relative_error(model.gradient, plain.gradient) < 1e-12
    assert relative_error(model.product(v), plain.product(v)) < 1e-12


def test_a_loss_without_an_example_axis_is_refused():
    case = Case("squared_error")
    problem = hfdist.Problem(case.predict, lambda z, batch: jnp.mean(z))
    with pytest.raises(ValueError, match="one number per example"):
        quadratic(problem, case.params, case.batch, "hessian", ONE_DEVICE)
