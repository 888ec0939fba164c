"""The local quadratic model of a batch: value, gradient, and the product v -> C v.

    f(w + d) ≈ f(w) + ⟨g, d⟩ + ½ ⟨d, C d⟩,   f(w) = Σ wᵢ lᵢ(w) / Σ wᵢ

C is the Hessian H = ∇²f or the Gauss-Newton matrix G = Jᵀ H_z J (paper, eqs. 5 and 8).
Everything is linearised once per step; a product then costs, with a forward pass
counted as 1: gradient 3, G 4, H about 6, a finite difference of gradients 3.

Over devices, local sums go through `reduce` and are divided by the global Σ wᵢ after
it: (Σ wᵢ lᵢ, Σ wᵢ, gradient sum) in one all-reduce, each product in one more.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from optax import tree

from hfdist.parallel import Collectives
from hfdist.problem import Batch, Problem, weighted_sums
from hfdist.pytree import PyTree, divide

Curvature = Literal["gauss_newton", "hessian", "finite_difference"]


class Quadratic(NamedTuple):
    """f(w + d) ≈ value + ⟨gradient, d⟩ + ½ ⟨d, product(d)⟩, without damping."""

    value: Array  # ()
    gradient: PyTree  # like params
    product: Callable[[PyTree], PyTree]  # like params -> like params


def quadratic(
    problem: Problem,
    params: PyTree,
    batch: Batch,
    curvature: Curvature,
    devices: Collectives,
) -> Quadratic:
    """The quadratic model of the batch's mean loss at params."""
    build = {
        "gauss_newton": _gauss_newton,
        "hessian": _hessian,
        "finite_difference": _finite_difference,
    }[curvature]
    return build(problem, params, batch, devices)


def value_and_gradient(
    problem: Problem, params: PyTree, batch: Batch, devices: Collectives
) -> tuple[Array, PyTree]:
    """f(w) and g = ∇f(w) of the batch's mean loss."""
    sums, gradient_sum = jax.value_and_grad(
        partial(_loss_sums, problem, batch=batch), has_aux=True
    )(devices.vary(params))
    (loss_sum, weight_sum), gradient_sum = devices.reduce((sums, gradient_sum))
    return loss_sum / weight_sum, divide(gradient_sum, weight_sum)


def mean_loss(
    problem: Problem, params: PyTree, batch: Batch, devices: Collectives
) -> Array:
    """f(w) alone: one forward pass."""
    outputs = problem.predict(devices.vary(params), batch)
    loss_sum, weight_sum = devices.reduce(weighted_sums(problem, outputs, batch))
    return loss_sum / weight_sum


def _gauss_newton(problem, params, batch, devices) -> Quadratic:
    """v -> J v -> H_z J v -> Jᵀ H_z J v, J and H_z each linearised once."""
    local = devices.vary(params)
    outputs, jvp = jax.linearize(lambda p: problem.predict(p, batch), local)
    vjp = jax.linear_transpose(jvp, local)

    # H_z is the derivative of the loss's gradient in the outputs, block diagonal over
    # the examples, wᵢ included.
    loss_gradient = jax.value_and_grad(
        lambda z: weighted_sums(problem, z, batch), has_aux=True
    )
    (sums, output_gradient), output_hessian = jax.linearize(loss_gradient, outputs)
    (gradient_sum,) = vjp(output_gradient)

    def local_product(v):
        _, hessian_jv = output_hessian(jvp(v))
        (jt_hessian_jv,) = vjp(hessian_jv)
        return jt_hessian_jv

    return _reduced(sums, gradient_sum, local_product, devices)


def _hessian(problem, params, batch, devices) -> Quadratic:
    """v -> ∂(∇f)(w) v, forward over reverse (Pearlmutter 1994)."""
    gradient = jax.value_and_grad(
        partial(_loss_sums, problem, batch=batch), has_aux=True
    )
    (sums, gradient_sum), tangent = jax.linearize(gradient, devices.vary(params))
    return _reduced(sums, gradient_sum, lambda v: tangent(v)[1], devices)


def _finite_difference(problem, params, batch, devices) -> Quadratic:
    """v -> (∇f(w + εv) - ∇f(w)) / ε, the paper's eq. 3.

    ε‖v‖ = 2 √u (1 + ‖w‖) with u the unit roundoff, which balances truncation against
    cancellation (Nocedal & Wright 2006, section 8.1, scaled by the point as usual).
    """
    value, gradient = value_and_gradient(problem, params, batch, devices)
    norm = tree.norm(params)
    displacement = 2 * jnp.sqrt(jnp.finfo(norm.dtype).eps) * (1 + norm)

    def product(v):
        norm_v = tree.norm(v)
        epsilon = displacement / jnp.where(norm_v == 0, 1, norm_v)
        shifted = tree.add_scale(params, epsilon, v)
        _, shifted_gradient = value_and_gradient(problem, shifted, batch, devices)
        return divide(tree.sub(shifted_gradient, gradient), epsilon)

    return Quadratic(value, gradient, product)


def _reduced(sums, gradient_sum, local_product, devices) -> Quadratic:
    """The global means, from this device's sums."""
    (loss_sum, weight_sum), gradient_sum = devices.reduce((sums, gradient_sum))

    def product(v):
        product_sum = devices.reduce(local_product(devices.vary(v)))
        return divide(product_sum, weight_sum)

    return Quadratic(loss_sum / weight_sum, divide(gradient_sum, weight_sum), product)


def _loss_sums(problem: Problem, params: PyTree, batch: Batch) -> tuple[Array, Array]:
    return weighted_sums(problem, problem.predict(params, batch), batch)
