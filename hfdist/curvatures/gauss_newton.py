"""The Gauss-Newton matrix G = Jᵀ H_z J (paper, eq. 8)."""

from hfdist.linearised import linearised
from hfdist.problem import Batch, Problem
from hfdist.pytree import PyTree, inners
from hfdist.sums import Sums


def gauss_newton(problem: Problem, params: PyTree, batch: Batch) -> Sums:
    """v -> J v -> H_z J v -> Jᵀ H_z J v, J and H_z each linearised once.

    ⟨u, G v⟩ = ⟨J u, H_z J v⟩ takes no Jᵀ.

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

    return Sums(at.loss, at.weight, at.gradient, product, form)
