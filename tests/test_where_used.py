"""A predict that makes its weights where it uses them, against itself."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

import hfdist
from cases import relative_error
from hfdist.models.model import functional
from hfdist.models.transformer import Transformer
from hfdist.where_used import where_used


def test_a_weight_is_made_again_for_a_derivative():
    params = {"first": jnp.ones((7, 3)), "second": jnp.ones((2, 7))}
    batch = {"inputs": jnp.ones((5, 3))}

    def predict(params, batch):
        hidden = jnp.tanh(batch["inputs"] @ params["first"].T)
        return hidden @ params["second"].T

    def kept(predict):
        _, vjp = jax.vjp(lambda params: predict(params, batch), params)
        return {leaf.shape for leaf in jax.tree.leaves(vjp)}

    assert (7, 2) in kept(predict)  # the transpose
    assert (7, 2) not in kept(where_used(predict))


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_a_transformer_is_the_same_with_its_weights_made_where_used(remat):
    settings = Transformer(layers=2, heads=2, width=8, remat=remat)
    predict, params = functional(settings.build(6, 11, 0))
    batch = {"inputs": jnp.arange(12).reshape(2, 6) % 11}
    batch["labels"] = (batch["inputs"] + 1) % 11

    @partial(jax.jit, static_argnums=0)
    def product(predict):
        problem = hfdist.Problem(predict, hfdist.losses.next_token_cross_entropy)
        model = hfdist.quadratic(problem, params, batch)
        return model.gradient, model.product(params)

    assert relative_error(product(where_used(predict)), product(predict)) < 1e-5
