"""The Gauss-Newton matrix G = Jᵀ H_z J (paper, eq. 8)."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from hfdist.jacobian import written_jacobian
from hfdist.linearised import Linearised, linearised
from hfdist.memory import device_memory
from hfdist.problem import Batch, Problem
from hfdist.pytree import PyTree, inners, parameter_count
from hfdist.solvers.dense import columns, materialise
from hfdist.sums import Sums

# Of J, an example. The matrix product takes time in proportion to them: with more the
# network's own Jᵀ is cheaper (perceptrons on a CPU were even at 10 to 30).
MOST_ROWS = 32
LEAST = 128  # params in a part of a matrix product, of which a half is left out


def gauss_newton(problem: Problem, params: PyTree, batch: Batch) -> Sums:
    """v -> J v -> H_z J v -> Jᵀ H_z J v, J and H_z each linearised once.

    ⟨u, G v⟩ = ⟨J u, H_z J v⟩ takes no Jᵀ, and G itself one matrix product of a J that
    is written down, by columns in forward mode: half of what N products take.

    Raises UsageError for a layer without the forward derivative.
    """
    at = linearised(problem, params, batch)

    def product(v):
        hessian_jv = at.output_hessian(at.jvp(v))
        return at.vjp(hessian_jv)

    def form(vectors):
        jv = [at.jvp(v) for v in vectors]
        hessian_jv = [at.output_hessian(z) for z in jv]
        return inners(jv, hessian_jv).astype(at.loss.dtype)

    def matrix(block):
        if not _worth_writing(at):
            return materialise(product, at.gradient, block)
        if written := written_jacobian(problem.predict):
            j_N = written(params, batch)
        else:
            j_N = columns(at.jvp, at.wide, block)
        flat = jax.vmap(lambda z: ravel_pytree(z)[0])
        j_NM, hessian_j_NM = flat(j_N), flat(jax.vmap(at.output_hessian)(j_N))
        product_NN = _symmetric(j_NM, hessian_j_NM, max(LEAST, len(j_NM) // 8))
        return product_NN.astype(at.loss.dtype)

    return Sums(at.loss, at.weight, at.gradient, product, form, matrix)


def _symmetric(a_NM: Array, b_NM: Array, least: int) -> Array:
    """A Bᵀ (N, N), symmetric: of what is beside its two halves' own, one of two."""
    k = len(a_NM) // 2
    if k < least:
        return _product(a_NM, b_NM)
    above = _product(a_NM[:k], b_NM[k:])
    first = _symmetric(a_NM[:k], b_NM[:k], least)
    last = _symmetric(a_NM[k:], b_NM[k:], least)
    return jnp.block([[first, above], [above.T, last]])


def _product(a_NM: Array, b_KM: Array) -> Array:
    return jnp.matmul(a_NM, b_KM.T, precision=jax.lax.Precision.HIGHEST)


def _worth_writing(at: Linearised) -> bool:
    """Whether J has few rows an example, and fits."""
    leaves = jax.tree.leaves(at.outputs)
    m, n = parameter_count(leaves), parameter_count(at.gradient)
    fits = 2 * m * n * at.loss.dtype.itemsize <= device_memory() / 4
    return fits and m <= MOST_ROWS * len(leaves[0])
