"""The curvature matrix of a network over many examples, by its products.

    C v = Σ_S share_S · C_S v,   share_S = (Σ wᵢ of batch S) / Σ wᵢ

is the Hessian or Gauss-Newton matrix of the mean loss over the examples of all batches:
memory is that of one batch. A batch is split over the devices, and each product of it
is summed by an all-reduce. All arithmetic is in float64, whatever the run's.

S: batches, B: examples of one, N: parameters, M: those whose row of C is not zero.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from optax import tree

from hfdist.data.idx import Examples
from hfdist.data.pipeline import Chunk, GlobalBatches, decode
from hfdist.errors import UsageError
from hfdist.parallel import collectives, data_parallel, place_chunk, replicate
from hfdist.problem import Problem
from hfdist.pytree import PyTree, parameter_count
from hfdist.quadratics import Curvature, quadratic
from hfdist.solvers.dense import materialise

BATCH = 1000  # examples linearised at a time
BLOCK = 128  # columns of the dense matrix computed at a time
DTYPE = "float64"


def placed_batches(examples: Examples, mesh: Mesh | None) -> Chunk:
    """All the examples on the devices, leaves (S, B, …); weight 0 pads the last batch.

    Of few examples none is a whole batch: B is then what the devices share evenly.
    """
    devices = 1 if mesh is None else mesh.size
    size = min(BATCH, len(examples.labels))
    source = GlobalBatches(examples, size + -size % devices, seed=None)
    return place_chunk(source.chunk(0, source.per_epoch), mesh)


def mean_product(problem: Problem, curvature: Curvature, mesh: Mesh | None) -> Callable:
    """(params, batches, v) -> C v, like params."""
    devices = collectives(mesh)

    def of_batch(_, v, params, batch):
        batch = decode(batch, DTYPE)
        return quadratic(problem, params, batch, curvature, devices).product(v)

    shared_out = data_parallel(of_batch, mesh)

    def product(params, batches, v):
        weights_S = jnp.sum(batches["weights"].astype(DTYPE), axis=1)

        def add(total, batch_and_weight):
            batch, weight = batch_and_weight
            return tree.add_scale(total, weight, shared_out(None, v, params, batch)), ()

        start = tree.zeros_like(v)
        total, _ = jax.lax.scan(add, start, (batches, weights_S / weights_S.sum()))
        return total

    return product


class Matrix(NamedTuple):
    """C without its zero rows and columns, each of which is an eigenvalue 0 of C."""

    parameters: int  # N
    live_M: np.ndarray  # the places of the other rows
    product: Callable[[np.ndarray], np.ndarray]  # rows (P, M) -> rows (P, M)
    dense: Callable[[], np.ndarray]  # () -> (M, M)


def matrix_at(
    problem: Problem, batches: Chunk, curvature: Curvature, mesh: Mesh | None
) -> Callable[[PyTree], Matrix]:
    """params -> Matrix; compiled once for all params."""
    product = mean_product(problem, curvature, mesh)

    def live_product(params, batches, live_M, v_M):
        flat_N, unravel = ravel_pytree(params)
        v = unravel(jnp.zeros_like(flat_N).at[live_M].set(v_M))
        return ravel_pytree(product(params, batches, v))[0][live_M]

    @jax.jit
    def dense(params, batches, live_M):
        like_M = jnp.zeros(live_M.shape, DTYPE)
        return materialise(
            lambda v_M: live_product(params, batches, live_M, v_M), like_M, BLOCK
        )

    # Several vectors share one linearisation: 8 at once cost what 3 do one by one.
    rows = jax.jit(jax.vmap(live_product, in_axes=(None, None, None, 0)))

    def at(params: PyTree) -> Matrix:
        params = replicate(tree.cast(params, DTYPE), mesh)
        count = parameter_count(params)
        # A row times a random vector is 0 if the row is, and otherwise with chance 0.
        probe_1N = np.random.default_rng(0).normal(size=(1, count))
        (image_N,) = np.asarray(rows(params, batches, np.arange(count), probe_1N))
        if not np.all(np.isfinite(image_N)):
            raise UsageError(
                "the curvature is not finite at these params: choose an earlier --step"
            )
        live_M = np.flatnonzero(image_N)
        return Matrix(
            count,
            live_M,
            lambda v_PM: np.asarray(rows(params, batches, live_M, v_PM)),
            lambda: np.asarray(dense(params, batches, live_M)),
        )

    return at
