"""CG backtracking: of a solve's iterates not the last, but one that lowers f itself.

Each iterate lowers the quadratic model further than the one before, but f less, once
they fit the model where it no longer holds, or the examples of the products alone
(Martens 2010, section 4.6). It stands between the solver and the step rule, and any
rule takes what comes out.
"""

import jax
import jax.numpy as jnp
from jax import Array
from optax import tree

from hfdist.quadratics import Quadratic
from hfdist.solvers.solution import Solution, relative
from hfdist.solvers.system import System


def backtracked(
    system: System, solution: Solution, model: Quadratic, learning_rate: Array
) -> Solution:
    """The solution, with the iterate in x's place that a walk back from x ends at.

    The walk goes from the last iterate to the one kept before it, and so on, while

        f(w + α x₋) < f(w + α x),   x₋ the iterate kept before x,

    and past any x whose f is not finite. Each look is a forward pass over the batch.
    The new residual is one more product, made only where the walk went: to keep
    residuals beside the iterates would double their memory. A solution without iterates
    is returned as it is.
    """
    if (iterates := solution.iterates) is None:
        return solution
    newest_first = jnp.argsort(-iterates.steps)
    kept = jnp.sum(iterates.steps > 0)

    def loss(x):
        return model.value_at(tree.scale(learning_rate, x)).loss

    def earlier(j):
        """The j-th iterate kept before the last."""
        return jax.tree.map(lambda rows: rows[newest_first[j - 1]], iterates.x)

    def look(carry):
        j, lowest, _ = carry
        found = loss(earlier(j + 1))
        lower = (found < lowest) | ~jnp.isfinite(lowest)
        j = jnp.where(lower, j + 1, j)
        return j, jnp.where(lower, found, lowest), lower & (j < kept)

    start = jnp.int32(0), loss(solution.x), kept > 0
    j, _, _ = jax.lax.while_loop(lambda carry: carry[2], look, start)

    def replaced():
        x = earlier(j)
        return x, tree.sub(system.b, system.product(x))

    x, residual = jax.lax.cond(j > 0, replaced, lambda: (solution.x, solution.residual))
    inner, b = system.inner, system.b
    relative_residual = relative(inner(residual, residual), inner(b, b))
    return solution._replace(
        x=x, residual=residual, relative_residual=relative_residual
    )
