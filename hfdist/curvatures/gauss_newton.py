"""The Gauss-Newton matrix G = Jᵀ H_z J (paper, eq. 8)."""

from collections.abc import Callable
from functools import partial

import jax

from hfdist.errors import UsageError
from hfdist.problem import Batch, Problem, weighted_sums
from hfdist.pytree import PyTree, inners, widen
from hfdist.sums import Sums, outputs_at


def gauss_newton(problem: Problem, params: PyTree, batch: Batch) -> Sums:
    """v -> J v -> H_z J v -> Jᵀ H_z J v, J and H_z each linearised once.

    ⟨u, G v⟩ = ⟨J u, H_z J v⟩ takes no Jᵀ.

    Raises UsageError for a layer without the forward derivative.
    """
    wide = widen(params)
    outputs, jvp = jax.linearize(partial(outputs_at, problem, params, batch), wide)
    _check_forward_derivative(jvp, wide)
    vjp = jax.linear_transpose(jvp, wide)

    # H_z is the derivative of the loss's gradient in the outputs, block diagonal over
    # the examples, wᵢ included.
    loss_gradient = jax.value_and_grad(
        lambda z: weighted_sums(problem, z, batch), has_aux=True
    )
    (sums, output_gradient), output_hessian = jax.linearize(loss_gradient, outputs)
    loss_sum, weight_sum = sums
    (gradient_sum,) = vjp(output_gradient)

    def product(v):
        _, hessian_jv = output_hessian(jvp(v))
        (jt_hessian_jv,) = vjp(hessian_jv)
        return jt_hessian_jv

    def form(vectors):
        jv = [jvp(v) for v in vectors]
        hessian_jv = [output_hessian(z)[1] for z in jv]
        return inners(jv, hessian_jv).astype(loss_sum.dtype)

    return Sums(loss_sum, weight_sum, gradient_sum, product, form)


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
