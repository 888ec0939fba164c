"""A device's share of a batch, some examples at a time.

Sums over its examples are made by a scan over micro-batches, so that a step takes the
memory of one of them, whatever the batch; devices then add up the totals, once. Nothing
that is linearised outlives its micro-batch: every product computes it again, and costs
a forward pass more than of a share that is taken whole.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from optax import tree

from hfdist.batches import examples_in, is_replicated
from hfdist.errors import UsageError
from hfdist.parallel import Collectives
from hfdist.problem import Batch, Problem
from hfdist.pytree import PyTree
from hfdist.sums import Sums, form_of, matrix_of

Build = Callable[[Problem, PyTree, Batch], Sums]


def curvature_sums(
    build: Build, problem: Problem, params: PyTree, batch: Batch, devices: Collectives
) -> Sums:
    """The sums of a curvature over this device's share of a batch."""
    if not _in_parts(batch, devices):
        return build(problem, params, batch)

    def total(of: Callable[[Sums], Any]) -> Any:
        return summed(lambda part: of(build(problem, params, part)), devices, batch)

    loss, weight, gradient = total(lambda sums: (sums.loss, sums.weight, sums.gradient))
    return Sums(
        loss,
        weight,
        gradient,
        product=lambda v: total(lambda sums: sums.product(v)),
        form=lambda vectors: total(lambda sums: form_of(sums, vectors)),
        matrix=lambda block: total(lambda sums: matrix_of(sums, block)),
    )


def summed(function: Callable, devices: Collectives, batch: Batch, *rows: Any) -> Any:
    """Σ function(micro-batch, *its rows), a tree, over this device's share of a batch.

    rows: trees of arrays with a row for each example of the share.
    """
    if not _in_parts(batch, devices):
        return function(batch, *rows)
    size = devices.micro_batch_size

    def parts(leaf):
        return leaf.reshape(-1, size, *leaf.shape[1:])

    def parts_or_none(path, leaf):
        return None if is_replicated(path, devices.replicated) else parts(leaf)

    split = jax.tree_util.tree_map_with_path(parts_or_none, batch)
    scanned = split, jax.tree.map(parts, rows)

    def of_part(part):
        batch_part, rows_part = part
        return function(
            jax.tree.map(
                lambda leaf, whole: whole if leaf is None else leaf,
                batch_part,
                batch,
                is_leaf=lambda leaf: leaf is None,
            ),
            *rows_part,
        )

    def add(total, part):
        return tree.add(total, of_part(part)), None

    like = jax.eval_shape(of_part, jax.tree.map(lambda leaf: leaf[0], scanned))
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    return jax.lax.scan(add, devices.vary(start), scanned)[0]


def _in_parts(batch: Batch, devices: Collectives) -> bool:
    """Whether the share is more than one micro-batch.

    Raises UsageError for one that is no whole number of them.
    """
    size = devices.micro_batch_size
    if size is None:
        return False
    examples = examples_in(batch, devices.replicated)
    if examples > size and examples % size:
        raise UsageError(
            f"micro_batch_size is {size}, and a device has {examples} examples of a "
            f"batch, not a whole number of times as many: use a divisor of {examples}"
        )
    return examples > size
