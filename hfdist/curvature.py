"""The local quadratic model of a batch: value, gradient, and the product v -> C v.

    f(w + d) ≈ f(w) + ⟨g, d⟩ + ½ ⟨d, C d⟩,   f(w) = Σ wᵢ lᵢ(w) / Σ wᵢ + ½ Σ μ w²

C is the Hessian H = ∇²f or the Gauss-Newton matrix G = Jᵀ H_z J + diag(μ) (paper, eqs.
5 and 8). Everything is linearised once per step; a product then costs, with a forward
pass counted as 1: gradient 3, G 4, H about 6, a finite difference of gradients 3.

Over devices, local sums go through `reduce` and are divided by the global Σ wᵢ after
it: (Σ wᵢ lᵢ, Σ wᵢ, gradient sum) in one all-reduce, each product in one more. The
penalty is added to what is replicated.

Params may mix dtypes: gradients and products, and the vectors multiplied, have the
working dtype (the widest leaf's, float32 at least) in all leaves.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array
from optax import tree

from hfdist.checks import check_choice
from hfdist.errors import UsageError
from hfdist.parallel import ONE_DEVICE, Collectives
from hfdist.problem import Batch, Problem, decay, penalised, penalty, weighted_sums
from hfdist.pytree import PyTree, divide, widen

Curvature = Literal["gauss_newton", "hessian", "finite_difference"]


class Quadratic(NamedTuple):
    """f(w + d) ≈ value + ⟨gradient, d⟩ + ½ ⟨d, product(d)⟩, without damping."""

    value: Array  # ()
    gradient: PyTree  # like params, in their working dtype
    product: Callable[[PyTree], PyTree]  # d -> C d, both like the gradient


def quadratic(
    problem: Problem,
    params: PyTree,
    batch: Batch,
    curvature: Curvature = "gauss_newton",
    devices: Collectives = ONE_DEVICE,
) -> Quadratic:
    """The quadratic model of the batch's f at params.

    Raises UsageError for a layer without the derivative that the curvature needs.
    """
    check_choice("curvature", curvature, get_args(Curvature))
    build = {
        "gauss_newton": _gauss_newton,
        "hessian": _hessian,
        "finite_difference": _finite_difference,
    }[curvature]
    value, gradient, mean_product = build(problem, params, batch, devices)

    def product(v):
        return tree.add(mean_product(v), decay(problem, v))

    value, gradient = _add_penalty(problem, params, value, gradient)
    return Quadratic(value, gradient, product if penalised(problem) else mean_product)


def value_and_gradient(
    problem: Problem, params: PyTree, batch: Batch, devices: Collectives = ONE_DEVICE
) -> tuple[Array, PyTree]:
    """f(w) and g = ∇f(w) of a batch."""
    means = _mean_loss_and_gradient(problem, params, batch, devices)
    return _add_penalty(problem, params, *means)


def mean_loss_and_rounding(
    problem: Problem, params: PyTree, batch: Batch, devices: Collectives = ONE_DEVICE
) -> tuple[Array, Array]:
    """f(w) by one forward pass, and how much of it is rounding.

    The latter is u |f| + u ‖∂f/∂z ∘ z‖ for outputs z, u being the roundoff of either:
    the error of one evaluation, if those of the outputs are independent.
    """
    outputs = problem.predict(devices.vary(params), batch)
    (loss_sum, weight_sum), slopes = jax.value_and_grad(
        lambda z: weighted_sums(problem, z, batch), has_aux=True
    )(outputs)
    errors = jax.tree.map(lambda s, z: s * z * jnp.finfo(z.dtype).eps, slopes, outputs)
    squares = tree.norm(tree.cast(errors, loss_sum.dtype), squared=True)
    loss_sum, weight_sum, squares = devices.reduce((loss_sum, weight_sum, squares))
    value = loss_sum / weight_sum
    if penalised(problem):
        value += penalty(problem, widen(params))
    rounding = jnp.abs(value) * jnp.finfo(value.dtype).eps
    return value, rounding + jnp.sqrt(squares) / weight_sum


def _add_penalty(problem, params, value, gradient):
    if not penalised(problem):
        return value, gradient
    wide = widen(params)
    value += penalty(problem, wide)
    return value, tree.add(gradient, decay(problem, wide))


# What follows is of the mean loss, without the penalty.


def _gauss_newton(problem, params, batch, devices):
    """v -> J v -> H_z J v -> Jᵀ H_z J v, J and H_z each linearised once."""
    local = devices.vary(widen(params))
    outputs, jvp = jax.linearize(partial(_outputs, problem, params, batch), local)
    _check_forward_derivative(jvp, local)
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


def _hessian(problem, params, batch, devices):
    """v -> ∂(∇f)(w) v, forward over reverse (Pearlmutter 1994)."""
    gradient = jax.value_and_grad(
        partial(_loss_sums, problem, params, batch), has_aux=True
    )
    local = devices.vary(widen(params))
    (sums, gradient_sum), tangent = jax.linearize(gradient, local)
    return _reduced(sums, gradient_sum, lambda v: tangent(v)[1], devices)


def _finite_difference(problem, params, batch, devices):
    """v -> (∇f(w + εv) - ∇f(w)) / ε, the paper's eq. 3.

    ε‖v‖ = 2 √u (1 + ‖w‖) with u the unit roundoff, which balances truncation against
    cancellation (Nocedal & Wright 2006, section 8.1, scaled by the point as usual).
    predict is given params in the working dtype: εv would be lost in bfloat16.
    """
    params = widen(params)
    value, gradient = _mean_loss_and_gradient(problem, params, batch, devices)
    norm = tree.norm(params)
    displacement = 2 * jnp.sqrt(jnp.finfo(norm.dtype).eps) * (1 + norm)

    def product(v):
        norm_v = tree.norm(v)
        epsilon = displacement / jnp.where(norm_v == 0, 1, norm_v)
        shifted = tree.add_scale(params, epsilon, v)
        _, ahead = _mean_loss_and_gradient(problem, shifted, batch, devices)
        return divide(tree.sub(ahead, gradient), epsilon)

    return value, gradient, product


def _mean_loss_and_gradient(problem, params, batch, devices):
    sums, gradient_sum = jax.value_and_grad(
        partial(_loss_sums, problem, params, batch), has_aux=True
    )(devices.vary(widen(params)))
    (loss_sum, weight_sum), gradient_sum = devices.reduce((sums, gradient_sum))
    return loss_sum / weight_sum, divide(gradient_sum, weight_sum)


def _reduced(sums, gradient_sum, local_product, devices):
    """The global means, from this device's sums."""
    (loss_sum, weight_sum), gradient_sum = devices.reduce((sums, gradient_sum))

    def product(v):
        product_sum = devices.reduce(local_product(devices.vary(v)))
        return divide(product_sum, weight_sum)

    return loss_sum / weight_sum, divide(gradient_sum, weight_sum), product


def _outputs(problem: Problem, params: PyTree, batch: Batch, wide: PyTree) -> Any:
    """predict at `wide`, rounded to the dtypes of params."""
    return problem.predict(tree.cast_like(wide, params), batch)


def _loss_sums(
    problem: Problem, params: PyTree, batch: Batch, wide: PyTree
) -> tuple[Array, Array]:
    return weighted_sums(problem, _outputs(problem, params, batch, wide), batch)


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
