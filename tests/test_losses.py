"""Losses against their closed forms, and their complaints."""

import jax.numpy as jnp
import numpy as np
import pytest

from cases import LOSSES, OUTPUTS, loss_and_output_hessian

KNOWN = ("softmax_cross_entropy", "sigmoid_cross_entropy", "squared_error")


@pytest.mark.parametrize("name", KNOWN)
def test_labels_mean_one_hot_targets(name):
    rng = np.random.default_rng(0)
    z_BC, labels_B = rng.normal(size=(6, OUTPUTS)), rng.integers(0, OUTPUTS, 6)
    t_BC = np.eye(OUTPUTS)[labels_B]
    rows = zip(z_BC, t_BC, strict=True)
    expected = [loss_and_output_hessian(name, z, t)[0] for z, t in rows]
    loss = LOSSES[name]
    by_label = loss(jnp.asarray(z_BC), {"labels": jnp.asarray(labels_B)})
    by_target = loss(jnp.asarray(z_BC), {"targets": jnp.asarray(t_BC)})
    np.testing.assert_allclose(by_label, expected, rtol=1e-12)
    np.testing.assert_allclose(by_target, expected, rtol=1e-12)


@pytest.mark.parametrize("name", KNOWN)
def test_large_outputs_stay_finite(name):
    z_BC = jnp.asarray([[1e3, -1e3, 0.0]])
    assert jnp.isfinite(LOSSES[name](z_BC, {"labels": jnp.asarray([1])})).all()


@pytest.mark.parametrize("name", KNOWN)
def test_a_batch_without_targets_is_refused(name):
    with pytest.raises(ValueError, match="needs 'targets'"):
        LOSSES[name](jnp.zeros((2, 3)), {"inputs": jnp.zeros((2, 3))})


@pytest.mark.parametrize("name", KNOWN)
def test_targets_of_another_shape_are_refused(name):
    """Broadcasting would silently compare each output with each target."""
    with pytest.raises(ValueError, match="differ in shape"):
        LOSSES[name](jnp.zeros((2, 3)), {"targets": jnp.zeros((2, 1))})
