"""What is being minimised: a model's outputs, a convex loss of them, a penalty."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from hfdist.checks import NonNegative, fitted, known
from hfdist.errors import UsageError
from hfdist.pytree import PyTree, inner, widest

# Entries by name, each an array or a tree of them: any mapping that is a pytree.
Batch = Mapping[str, Any]


class Problem(NamedTuple):
    """The regularised mean loss of a batch,

        f(w) = Σ wᵢ loss(predict(w, xᵢ), yᵢ) / Σ wᵢ + ½ Σ μ w².

    predict and loss are kept apart because the Gauss-Newton matrix JᵀH_zJ needs the
    Jacobian J of one and the Hessian H_z of the other. The penalty (weight decay)
    counts in the value, the gradient and every product.
    """

    predict: Callable[[PyTree, Any], Any]  # (params, batch) -> outputs, leaves (B, …)
    loss: Callable[[Any, Any], Array]  # (outputs, batch) -> (B,), convex in outputs
    l2: Any = 0.0  # μ ≥ 0: one number, or a tree of numbers like the params


@dataclass(frozen=True)
class KernelFirst:
    """A predict that names its first product A = X W, for the input reduction.

        predict(w, batch) = behind(w with A = batch["inputs"] @ W in W's place, batch)

    For networks in which it cannot be found: inside a jit or a vmap of their own.
    """

    kernel: str  # where W (d, m) is in the params, as jax.tree_util.keystr has it
    behind: Callable[[PyTree, Any], Any]  # (params with A (B, m) for W, batch)

    def __call__(self, params: PyTree, batch: Batch) -> Any:
        def with_product(path, leaf):
            named = jax.tree_util.keystr(path) == self.kernel
            return batch["inputs"] @ leaf if named else leaf

        return self.behind(
            jax.tree_util.tree_map_with_path(with_product, params), batch
        )


def weighted_sums(problem: Problem, outputs: Any, batch: Batch) -> tuple[Array, Array]:
    """(Σ wᵢ lᵢ, Σ wᵢ) over the examples at hand; without weights every wᵢ is 1.

    The losses are taken of the outputs in float32 at least: sums in bfloat16 keep
    three digits.
    """
    losses_B = problem.loss(jax.tree.map(_at_least_float32, outputs), batch)
    if losses_B.ndim != 1:
        raise UsageError(
            f"the loss must return one number per example, shape (B,), but returned "
            f"shape {losses_B.shape}: sum over the outputs, not over the examples"
        )
    weights_B = batch.get("weights")
    if weights_B is None:
        weights_B = jnp.ones_like(losses_B)
    if jnp.shape(weights_B) != losses_B.shape:
        raise UsageError(
            f"batch['weights'] has shape {jnp.shape(weights_B)}, but there is one loss "
            f"per example, shape {losses_B.shape}: give one weight per example"
        )
    weights_B = weights_B.astype(losses_B.dtype)
    return jnp.sum(weights_B * losses_B), jnp.sum(weights_B)


def penalised(problem: Problem) -> bool:
    """Whether the problem has a penalty; a traced or a tree's 0 counts as one."""
    return not (isinstance(problem.l2, int | float) and problem.l2 == 0)


def decay(problem: Problem, params: PyTree) -> PyTree:
    """μ ∘ w, the penalty's gradient; with v for w its product."""
    mus = problem.l2
    if jax.tree_util.all_leaves([mus]):
        mus = jax.tree.map(lambda _: mus, params)
    return jax.tree.map(lambda mu, w: jnp.asarray(mu, w.dtype) * w, mus, params)


def penalty(
    problem: Problem,
    params: PyTree,
    inner: Callable[[PyTree, PyTree], Array] = inner,
) -> Array:
    """½ Σ μ w²."""
    return inner(params, decay(problem, params)) / 2


def check_penalty(problem: Problem, params: PyTree) -> None:
    """Raise UsageError for an l2 that is negative, or not a number or a like tree."""
    for mu in jax.tree.leaves(problem.l2):
        if jnp.ndim(mu):
            raise UsageError("l2 holds an array: give one number for each array")
        if known(mu):
            fitted("l2", mu, NonNegative)
    given = jax.tree.structure(problem.l2)
    if given.num_nodes > 1 and given != jax.tree.structure(params):
        raise UsageError(
            f"l2 is a tree, but not like the params: give one number, or a tree with "
            f"{jax.tree.structure(params)}"
        )


def _at_least_float32(array: Array) -> Array:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    return array.astype(widest(array.dtype, jnp.float32))
