"""The Hessian by a finite difference of gradients (paper, eq. 3)."""

import jax.numpy as jnp
from optax import tree

from hfdist.problem import Batch, Problem
from hfdist.pytree import PyTree, divide, widen
from hfdist.sums import Sums, gradient_sums


def finite_difference(problem: Problem, params: PyTree, batch: Batch) -> Sums:
    """v -> (∇f(w + εv) - ∇f(w)) / ε, the paper's eq. 3.

    ε‖v‖ = 2 √u (1 + ‖w‖) with u the unit roundoff, which balances truncation against
    cancellation (Nocedal & Wright 2006, section 8.1, scaled by the point as usual).
    predict is given params in the working dtype: εv would be lost in bfloat16.
    """
    params = widen(params)
    (loss_sum, weight_sum), gradient_sum = gradient_sums(problem, params, batch)
    norm = tree.norm(params)
    displacement = 2 * jnp.sqrt(jnp.finfo(norm.dtype).eps) * (1 + norm)

    def product(v):
        norm_v = tree.norm(v)
        epsilon = displacement / jnp.where(norm_v == 0, 1, norm_v)
        shifted = tree.add_scale(params, epsilon, v)
        _, ahead = gradient_sums(problem, shifted, batch)
        return divide(tree.sub(ahead, gradient_sum), epsilon)

    return Sums(loss_sum, weight_sum, gradient_sum, product)
