"""One device's share of a batch in sums: of loss, weight, gradient and product.

They are of Σ wᵢ lᵢ(w), without the penalty, and know nothing of other devices: what is
divided by the global Σ wᵢ, and added up before, is up to quadratics.py.

Params may mix dtypes: gradients and products, and the vectors multiplied, have the
working dtype (the widest leaf's, float32 at least) in all leaves.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from optax import tree

from hfdist.problem import Batch, Problem, weighted_sums
from hfdist.pytree import PyTree, inners, widen
from hfdist.solvers.dense import materialise


class Sums(NamedTuple):
    """What a curvature makes of one device's share of a batch."""

    loss: Array  # (), Σ wᵢ lᵢ
    weight: Array  # (), Σ wᵢ
    gradient: PyTree  # Σ wᵢ ∇lᵢ, like params, in their working dtype
    product: Callable[[PyTree], PyTree]  # v -> Σ wᵢ Cᵢ v, both like the gradient
    # (v₁ … vₖ) -> Σ wᵢ ⟨vᵢ, Cᵢ vⱼ⟩, (k, k); None: no cheaper than by the product.
    form: Callable[[Sequence[PyTree]], Array] | None = None
    # Σ wᵢ Cᵢ (N, N), of vectors raveled, so many columns at a time; None: no cheaper
    # than by the product.
    matrix: Callable[[int], Array] | None = None


def form_of(sums: Sums, vectors: Sequence[PyTree]) -> Array:
    """Σ wᵢ ⟨vᵢ, Cᵢ vⱼ⟩, (k, k), the cheapest way there is."""
    if sums.form:
        return sums.form(vectors)
    return inners(vectors, [sums.product(v) for v in vectors])


def matrix_of(sums: Sums, block: int) -> Array:
    """Σ wᵢ Cᵢ (N, N), the cheapest way there is, so many columns at a time."""
    if sums.matrix:
        return sums.matrix(block)
    return materialise(sums.product, sums.gradient, block)


def outputs_at(problem: Problem, params: PyTree, batch: Batch, wide: PyTree) -> Any:
    """predict at `wide`, rounded to the dtypes of params."""
    return problem.predict(tree.cast_like(wide, params), batch)


def loss_at(
    problem: Problem, params: PyTree, batch: Batch, wide: PyTree
) -> tuple[Array, Array]:
    """(Σ wᵢ lᵢ, Σ wᵢ) there."""
    return weighted_sums(problem, outputs_at(problem, params, batch, wide), batch)


def gradient_sums(
    problem: Problem, params: PyTree, batch: Batch
) -> tuple[tuple[Array, Array], PyTree]:
    """((Σ wᵢ lᵢ, Σ wᵢ), Σ wᵢ ∇lᵢ) at params."""
    loss = partial(loss_at, problem, params, batch)
    return jax.value_and_grad(loss, has_aux=True)(widen(params))


def loss_and_rounding(
    problem: Problem, params: PyTree, batch: Batch
) -> tuple[Array, Array, Array]:
    """Σ wᵢ lᵢ, Σ wᵢ, and ‖u ∂(Σ wᵢ lᵢ)/∂z ∘ z‖² for outputs z of roundoff u.

    The last is the square of the first one's error, if those of the outputs are
    independent.
    """
    outputs = problem.predict(params, batch)
    loss = partial(weighted_sums, problem, batch=batch)
    (loss_sum, weight_sum), slopes = jax.value_and_grad(loss, has_aux=True)(outputs)
    errors = jax.tree.map(lambda s, z: s * z * jnp.finfo(z.dtype).eps, slopes, outputs)
    squares = tree.norm(tree.cast(errors, loss_sum.dtype), squared=True)
    return loss_sum, weight_sum, squares
