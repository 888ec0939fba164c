"""The local quadratic model of a batch: value, gradient, and the product v -> C v.

    f(w + d) ≈ f(w) + ⟨g, d⟩ + ½ ⟨d, C d⟩,   f(w) = Σ wᵢ lᵢ(w) / Σ wᵢ + ½ Σ μ w²

C is the Hessian H = ∇²f or the Gauss-Newton matrix G = Jᵀ H_z J + diag(μ) (paper, eqs.
5 and 8): curvatures/ has one a file. Everything is linearised once per step; a product
then costs, with a forward pass counted as 1: gradient 3, G 4, H about 6, a finite
difference of gradients 3.

Over devices, local sums are collected and divided by the global Σ wᵢ after it: (Σ wᵢ
lᵢ, Σ wᵢ, gradient sum) in one all-reduce, each product in one more. The penalty is
added after that. Gradients, products and displacements are vectors in the sense of
sharing.py: like params, or shared out over the devices.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jax.flatten_util import ravel_pytree
from optax import tree

from hfdist import curvatures
from hfdist.choices import choices, chosen
from hfdist.micro_batches import curvature_sums, summed
from hfdist.parallel import ONE_DEVICE, Collectives
from hfdist.problem import Batch, Problem, decay, penalised, penalty
from hfdist.pytree import PyTree, divide, inners, widen
from hfdist.sums import form_of, gradient_sums, loss_and_rounding, matrix_of

if TYPE_CHECKING:
    Curvature = str
else:
    Curvature = Literal[choices(curvatures)]


class Value(NamedTuple):
    """f at a displaced point, and how much of it is rounding."""

    loss: Array  # (), f(w + d)
    rounding: Array  # (), u |f| + u ‖∂f/∂z ∘ z‖ for outputs z, u the roundoff of either


class Quadratic(NamedTuple):
    """f(w + d) ≈ value + ⟨gradient, d⟩ + ½ ⟨d, product(d)⟩, without damping."""

    value: Array  # ()
    gradient: PyTree  # like params, in their working dtype
    product: Callable[[PyTree], PyTree]  # d -> C d, both like the gradient
    value_at: Callable[[PyTree], Value]  # d -> f(w + d) itself, by a forward pass
    # (d₁ … dₖ) -> ⟨dᵢ, C dⱼ⟩, (k, k), of which nothing else is reduced
    form: Callable[[Sequence[PyTree]], Array]
    # C itself (N, N), of d raveled, so many columns at a time; None: by its products
    # alone
    matrix: Callable[[int], Array] | None = None


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
    build = chosen("curvature", curvature, curvatures)
    sums = curvature_sums(build, problem, devices.own(params), batch, devices)
    value, gradient, weight_sum = _means(devices, sums.loss, sums.weight, sums.gradient)
    value, gradient = _add_penalty(problem, params, value, gradient, devices)
    vectors = devices.vectors

    def mean_product(v):
        product_sum = sums.product(vectors.spread(v, params))
        return divide(vectors.collect(product_sum, ())[0], weight_sum)

    def product(v):
        return tree.add(mean_product(v), decayed(v))

    def decayed(v):
        mus = decay(problem, tree.ones_like(widen(params)))
        return tree.mul(vectors.part(mus), v)

    def form(vs):
        local = form_of(sums, [vectors.spread(v, params) for v in vs])
        mean = devices.reduce(local) / weight_sum
        if not penalised(problem):
            return mean
        return mean + inners(vs, [decayed(v) for v in vs], vectors.inner)

    def matrix(block):
        mean_NN = divide(devices.reduce(matrix_of(sums, block)), weight_sum)
        if not penalised(problem):
            return mean_NN
        mus = decay(problem, tree.ones_like(widen(params)))
        return mean_NN + jnp.diag(ravel_pytree(mus)[0])

    return Quadratic(
        value,
        gradient,
        product if penalised(problem) else mean_product,
        partial(value_at, problem, params, batch, devices),
        form,
        matrix,
    )


def value_and_gradient(
    problem: Problem, params: PyTree, batch: Batch, devices: Collectives = ONE_DEVICE
) -> tuple[Array, PyTree]:
    """f(w) and g = ∇f(w) of a batch, a vector."""
    local = partial(gradient_sums, problem, devices.own(params))
    (loss_sum, weight_sum), gradient_sum = summed(local, devices, batch)
    value, gradient, _ = _means(devices, loss_sum, weight_sum, gradient_sum)
    return _add_penalty(problem, params, value, gradient, devices)


def value_at(
    problem: Problem, params: PyTree, batch: Batch, devices: Collectives, d: PyTree
) -> Value:
    """f(w + d) of a batch, by one forward pass."""
    d = devices.vectors.expand(d, params)
    moved = optax.apply_updates(params, tree.cast_like(d, params))
    local = partial(loss_and_rounding, problem, devices.own(moved))
    loss_sum, weight_sum, squares = devices.reduce(summed(local, devices, batch))
    loss = loss_sum / weight_sum
    if penalised(problem):
        loss += penalty(problem, widen(moved), devices.inner)
    rounding = jnp.abs(loss) * jnp.finfo(loss.dtype).eps
    # Where these overflow f itself may not: a step to there is evidence all the same.
    squares = jnp.where(jnp.isfinite(squares), squares, 0)
    return Value(loss, rounding + jnp.sqrt(squares) / weight_sum)


def _means(devices, loss_sum, weight_sum, gradient_sum):
    """The global means, and Σ wᵢ, from this device's sums: one all-reduce."""
    gradient_sum, (loss_sum, weight_sum) = devices.vectors.collect(
        gradient_sum, (loss_sum, weight_sum)
    )
    return loss_sum / weight_sum, divide(gradient_sum, weight_sum), weight_sum


def _add_penalty(problem, params, value, gradient, devices):
    if not penalised(problem):
        return value, gradient
    wide = widen(params)
    decayed = devices.vectors.part(decay(problem, wide))
    value = value + penalty(problem, wide, devices.inner)
    return value, tree.add(gradient, decayed)
