"""Per-example losses, convex in the outputs: (outputs (B, C), batch) -> (B,).

The targets are `batch["targets"]` (B, C) where given, else `batch["labels"]` (B,) as
one-hot rows, so each loss serves classification and regression alike. A label outside
0 … C - 1 gives a loss of NaN, and so a step that is refused, unless its example has
weight 0. Any other convex function with this signature works: its output Hessian H_z
comes from automatic differentiation.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from hfdist.errors import UsageError
from hfdist.problem import Batch
from hfdist.pytree import widest


def softmax_cross_entropy(z_BC: Array, batch: Batch) -> Array:
    """l = -Σ_c t_c log softmax(z)_c, in nats; H_z = diag(p) - p pᵀ for Σ t = 1."""
    return optax.softmax_cross_entropy(z_BC, _targets(z_BC, batch))


def sigmoid_cross_entropy(z_BC: Array, batch: Batch) -> Array:
    """l = -Σ_c t_c log σ(z_c) + (1 - t_c) log(1 - σ(z_c)), in nats, 0 ≤ t_c ≤ 1."""
    return jnp.sum(optax.sigmoid_binary_cross_entropy(z_BC, _targets(z_BC, batch)), -1)


def squared_error(z_BC: Array, batch: Batch) -> Array:
    """l = Σ_c (z_c - t_c)², the literature's error of autoencoders: no factor 1/2."""
    return jnp.sum(jnp.square(z_BC - _targets(z_BC, batch)), -1)


def next_token_cross_entropy(z_BTV: Array, batch: Batch) -> Array:
    """l = -1/T Σ_t log softmax(z_t) at label t, in nats a token; labels (B, T).

    H_z is block diagonal: softmax_cross_entropy's for each token, divided by T.
    """
    return jnp.mean(softmax_cross_entropy(z_BTV, batch), -1)


def _targets(z_BC: Array, batch: Batch) -> Array:
    if "targets" in batch:
        targets_BC = batch["targets"]
    elif "labels" in batch:
        targets_BC = _one_hot(batch["labels"], z_BC, batch.get("weights"))
    else:
        raise UsageError(
            f"a batch needs 'targets' (B, C) or 'labels' (B,); it has {list(batch)}"
        )
    if targets_BC.shape != z_BC.shape:
        raise UsageError(
            f"outputs {z_BC.shape} and targets {targets_BC.shape} differ in shape"
        )
    return targets_BC


def _one_hot(labels_B: Array, z_BC: Array, weights_B: Array | None) -> Array:
    """Rows for labels (B,), or (B, T)."""
    if not jnp.isdtype(labels_B.dtype, ("integral", "bool")):
        raise UsageError(
            f"batch['labels'] are {labels_B.dtype}: use whole numbers, or 'targets'"
        )
    labels_B = labels_B.astype(widest(labels_B.dtype, jnp.int32))
    classes = z_BC.shape[-1]
    one_hot_BC = jax.nn.one_hot(labels_B, classes, dtype=z_BC.dtype)
    # jax.nn.one_hot makes it a row of zeros, which would count as loss 0.
    foreign_B = (labels_B < 0) | (labels_B >= classes)
    if weights_B is not None and weights_B.shape == labels_B.shape[:1]:
        foreign_B &= jnp.expand_dims(weights_B != 0, range(1, labels_B.ndim))
    return jnp.where(foreign_B[..., None], jnp.nan, one_hot_BC)
