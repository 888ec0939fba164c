"""The damped Gauss-Newton system solved for the outputs, where they are the fewer.

With J̃ = Rᵀ J / √Σ wᵢ (M, N) over the M = B C outputs of all examples, R Rᵀ = H_z,

    G = J̃ᵀ J̃ + μI,   K = J̃ J̃ᵀ (M, M),   δ = λ + μ > 0,
    (G + λI)⁻¹ b = (b - J̃ᵀ (K + δI)⁻¹ J̃ b) / δ    (Woodbury),

for any b. The dual form, -J̃ᵀ (K + δI)⁻¹ ρ of a gradient g = J̃ᵀ ρ, has no difference in
which digits are lost. But ρ = R⁻¹ ∂l/∂z grows as 1 / √p where softmax or sigmoid is
sure and wrong; there is none for a loss that is straight there; and g may be of other
examples, or have weight decay in it. The digits, about ‖K‖ / δ of the roundoff, come
back by solving again for the residual, which the products give: that also mends what an
accelerator rounds in K.

On one device K = Rᵀ (J Jᵀ) R / Σ wᵢ is one matrix product, if predict writes J down.
Otherwise no Jacobian is. Over devices every one has the params and gathers the
examples. It makes its own examples' columns of K, by Jᵀ of its share and then J of all,
a block at a time. The columns are gathered, and K is factorised on each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from optax import tree

from hfdist.batches import is_replicated
from hfdist.jacobian import written_jacobian
from hfdist.linearised import linearised
from hfdist.parallel import Collectives
from hfdist.problem import Batch, Problem
from hfdist.pytree import PyTree, divide, inner, working_dtype
from hfdist.roots import at_least_float32, root, rows_of
from hfdist.solvers.dense import columns, factorised, reason_of, shifted
from hfdist.solvers.solution import Solution, relative
from hfdist.solvers.system import System

# The error is then that of a dense solve, up to ‖K‖ / δ of some 1e14 in float64.
REFINEMENTS = 2


class Outputs(NamedTuple):
    """G = J̃ᵀ J̃ through the outputs of all examples, the same on every device."""

    into: Callable[[PyTree], Array]  # v -> J̃ v (M,)
    back: Callable[[Array], PyTree]  # u (M,) -> J̃ᵀ u, like the gradient
    kernel: Callable[[int], Array]  # K (M, M), so many columns at a time
    like: Any  # (M,), a shape and a dtype


class Factor(NamedTuple):
    """The same of some examples, before Σ wᵢ divides; their rows in order."""

    size: int  # M
    dtype: Any
    weight: Array  # (), Σ wᵢ
    into: Callable[[PyTree], Array]
    back: Callable[[Array], PyTree]
    gram: Callable[[], Array] | None = None  # J̃ J̃ᵀ (M, M), if predict writes J down


def outputs_of(
    problem: Problem, params: PyTree, batch: Batch, devices: Collectives
) -> Outputs:
    """J̃ of the examples of all devices; batch: one device's share."""
    params = devices.vary(params)
    own = every = _factor(problem, params, batch)
    if devices.size > 1:
        every = _factor(*_of_all(problem, params, batch, devices))
    weight = devices.reduce(own.weight)

    def scaled(a: Any) -> Any:
        return divide(a, jnp.sqrt(weight))

    def column(unit_M: Array) -> Array:
        return every.into(own.back(devices.vary(unit_M)))

    def kernel(block: int) -> Array:
        if own.gram and devices.size == 1:
            return divide(own.gram(), weight)
        made = columns(column, jnp.zeros(own.size, own.dtype), block)
        return divide(devices.gather(made), weight)

    return Outputs(
        into=lambda v: scaled(devices.gather(own.into(devices.vary(v)))),
        back=lambda u_M: scaled(devices.reduce(own.back(devices.share(u_M)))),
        kernel=kernel,
        like=jax.ShapeDtypeStruct((every.size,), own.dtype),
    )


def solved_by_outputs(
    outputs: Outputs, kernel_MM: Array, system: System, shift: Array
) -> Solution:
    """x with (G + λI) x = b; shift: δ."""
    solve_M, positive = factorised(shifted(kernel_MM, shift))

    def once(b: PyTree) -> PyTree:
        u_M = solve_M(outputs.into(b))
        return divide(tree.sub(b, outputs.back(u_M)), shift)

    b = system.b
    x, residual = tree.zeros_like(b), b
    for _ in range(1 + REFINEMENTS):
        x = tree.add(x, once(residual))
        residual = tree.sub(b, system.product(x))
    relative_residual = relative(inner(residual, residual), inner(b, b))
    reason = reason_of(positive, jnp.isfinite(relative_residual))
    return Solution(x, residual, relative_residual, jnp.int32(0), reason)


def _factor(problem: Problem, params: PyTree, batch: Batch) -> Factor:
    """v -> Rᵀ J v and u -> Jᵀ R u, each as one array."""
    at = linearised(problem, params, batch)
    like, dtype = at_least_float32(at.outputs), working_dtype(params)
    rooted = root(problem, at.outputs, batch)
    transposed = jax.linear_transpose(rooted, like)
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], like))
    rows_BC = rows_of(like)

    def rooted_rows(z: Any) -> Array:
        return rows_of(*transposed(z)).ravel().astype(dtype)

    def into(v: PyTree) -> Array:
        return rooted_rows(at.jvp(v))

    def back(u_M: Array) -> PyTree:
        u_BC = u_M.reshape(rows_BC.shape).astype(rows_BC.dtype)
        return at.vjp(rooted(jax.vmap(unravel)(u_BC)))

    made = Factor(rows_BC.size, dtype, at.weight, into, back)
    written = written_jacobian(problem.predict)
    if written is None:
        return made

    def gram() -> Array:
        j_NM = written(params, batch).reshape(-1, rows_BC.size).astype(dtype)
        k_MM = jnp.matmul(j_NM.T, j_NM, precision=jax.lax.Precision.HIGHEST)
        for _ in range(2):  # of the rows, and of the columns
            rows = k_MM.astype(at.outputs.dtype).reshape(-1, *at.outputs.shape)
            k_MM = jax.vmap(rooted_rows)(rows).T
        return k_MM

    return made._replace(gram=gram)


def _of_all(
    problem: Problem, params: PyTree, batch: Batch, devices: Collectives
) -> tuple[Problem, PyTree, Batch]:
    """The problem of the examples of all devices; predict sees a share at a time."""

    def whole(path: Any) -> bool:
        return is_replicated(path, devices.replicated)

    def gathered(path: Any, leaf: Array) -> Array:
        return leaf if whole(path) else devices.gather(leaf)

    def parts(path: Any, leaf: Array) -> Array:
        shape = devices.size, -1, *leaf.shape[1:]
        return leaf if whole(path) else leaf.reshape(shape)

    def predict(params: PyTree, batch: Batch) -> Any:
        shares = jax.tree_util.tree_map_with_path(parts, batch)
        axes = jax.tree_util.tree_map_with_path(
            lambda path, _: None if whole(path) else 0, batch
        )
        outputs = jax.vmap(problem.predict, (None, axes))(params, shares)
        return jax.tree.map(lambda z: z.reshape(-1, *z.shape[2:]), outputs)

    of_all = jax.tree_util.tree_map_with_path(gathered, batch)
    return problem._replace(predict=predict), params, of_all
