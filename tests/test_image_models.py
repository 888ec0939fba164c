"""The autoencoder and the convolutional network, layer by layer against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import hfdist
from hfdist.models.autoencoder import Autoencoder
from hfdist.models.conv_net import ConvNet, patches
from hfdist.models.model import functional
from hfdist.tasks.reconstruction import Reconstruction

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("side", "size"), [(28, 3), (7, 3), (6, 5), (5, 1), (2, 4)])
def test_patches_times_a_kernel_are_a_convolution(side, size):
    x_BHWC = jnp.asarray(RNG.normal(size=(2, side, side, 3)))
    kernel = jnp.asarray(RNG.normal(size=(size, size, 3, 4)))
    expected = lax.conv_general_dilated(
        x_BHWC, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    found = patches(x_BHWC, size) @ kernel.reshape(-1, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_a_convolutional_network_takes_square_images():
    predict, params = functional(ConvNet(channels=(2, 3)).build(49, 4, 0))
    assert predict(params, {"inputs": jnp.ones((5, 49))}).shape == (5, 4)
    with pytest.raises(hfdist.UsageError, match="50 pixels make none"):
        ConvNet().build(50, 4, 0)


def logistic(x):
    return 1 / (1 + np.exp(-x))


def test_the_autoencoder_mirrors_its_encoder_around_a_linear_code():
    model = Autoencoder(encoder=(7, 3), incoming=4)
    predict, params = functional(model.build(9, 9, 0))
    kernels = [params["layers"][i]["kernel"] for i in sorted(params["layers"])]
    assert [kernel.shape for kernel in kernels] == [(9, 7), (7, 3), (3, 7), (7, 9)]
    x_BD = RNG.normal(size=(5, 9))
    expected = x_BD
    for kernel, function in zip(kernels, [logistic, None, logistic, None], strict=True):
        expected = expected @ np.asarray(kernel)  # the biases are 0
        expected = function(expected) if function else expected
    found = predict(params, {"inputs": jnp.asarray(x_BD)})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_sparse_initialisation_leaves_so_many_weights_of_a_unit():
    _, params = functional(Autoencoder(encoder=(200, 5), incoming=15).build(80, 80, 0))
    for layer in params["layers"].values():
        kernel, bias = np.asarray(layer["kernel"]), np.asarray(layer["bias"])
        assert (np.count_nonzero(kernel, 0) == min(15, len(kernel))).all()
        assert not bias.any()
    weights = np.asarray(params["layers"][0]["kernel"])
    drawn = weights[weights != 0]
    assert drawn.std() == pytest.approx(1, abs=0.05)
    assert np.count_nonzero(weights, 1).std() < 8  # no input is favoured


def test_a_reconstruction_is_measured_in_pixels():
    task = Reconstruction()
    raw = {"inputs": np.full((2, 3), 51, np.uint8), "weights": np.ones(2)}
    batch = task.prepare(jax.tree.map(jnp.asarray, raw), "float64")
    np.testing.assert_allclose(batch["targets"], 0.2)
    z = jnp.asarray([[0.0, 0.0, 0.0], [jnp.log(0.25)] * 3])  # sigmoid: 0.5, 0.2
    errors = task.figures(z, batch)["squared_error"]
    np.testing.assert_allclose(errors, [3 * 0.3**2, 0], atol=1e-12)
    linear = Reconstruction(loss="squared_error").figures(z, batch)["squared_error"]
    assert linear[0] == pytest.approx(3 * 0.2**2)
