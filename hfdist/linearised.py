"""A batch's outputs and losses at params, each linearised once: J and H_z.

    v -> J v,   u -> Jᵀ u,   u -> H_z u,   J = ∂z/∂w,   H_z = ∂²(Σ wᵢ lᵢ)/∂z²

J is a device's own, over its examples; H_z is block diagonal over them, wᵢ included.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax import Array

from hfdist.errors import UsageError
from hfdist.problem import Batch, Problem, weighted_sums
from hfdist.pytree import PyTree, widen
from hfdist.sums import outputs_at


class Linearised(NamedTuple):
    """What one linearisation gives: sums, and the factors of G = Jᵀ H_z J."""

    loss: Array  # (), Σ wᵢ lᵢ
    weight: Array  # (), Σ wᵢ
    gradient: PyTree  # Σ wᵢ ∇lᵢ, like params, in their working dtype
    wide: PyTree  # w, in that dtype
    outputs: Any  # z
    jvp: Callable[[PyTree], Any]  # v -> J v, like the outputs
    vjp: Callable[[Any], PyTree]  # u -> Jᵀ u, like the gradient
    output_hessian: Callable[[Any], Any]  # u -> H_z u, both like the outputs


def linearised(problem: Problem, params: PyTree, batch: Batch) -> Linearised:
    """predict at params, and the loss at its outputs.

    Raises UsageError for a layer without the forward derivative.
    """
    wide = widen(params)
    outputs, jvp = jax.linearize(partial(outputs_at, problem, params, batch), wide)
    _check_forward_derivative(jvp, wide)
    vjp = jax.linear_transpose(jvp, wide)

    # H_z is the derivative of the loss's gradient in the outputs.
    loss_gradient = jax.value_and_grad(
        lambda z: weighted_sums(problem, z, batch), has_aux=True
    )
    (sums, output_gradient), tangent = jax.linearize(loss_gradient, outputs)
    loss_sum, weight_sum = sums
    (gradient_sum,) = vjp(output_gradient)
    return Linearised(
        loss_sum,
        weight_sum,
        gradient_sum,
        wide,
        outputs,
        jvp,
        vjp=lambda u: vjp(u)[0],
        output_hessian=lambda u: tangent(u)[1],
    )


def _check_forward_derivative(jvp: Callable, v: PyTree) -> None:
    """Raise UsageError for a layer that knows its reverse derivative alone.

    JAX says so when J v is compiled, or batched, which is sooner.
    """
    try:
        jax.eval_shape(jax.vmap(jvp), jax.tree.map(lambda leaf: leaf[None], v))
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise UsageError(
            "predict has a layer with jax.custom_vjp, which has no forward derivative "
            "for J v: use curvature='finite_difference', which takes gradients alone, "
            "or define the layer's derivative by jax.custom_jvp"
        ) from error
