"""Input reduction: the quadratic model in the span of a batch's inputs.

A network that begins with A = X W (inputs X (B, d), kernel W (d, m)) depends on W
through A alone. With γ and M the gradient and the curvature in (A, other params),

    g = T γ,   C = T M Tᵀ,   T = blockdiag(Xᵀ, I),

so the solution of (C + λI) d = -g lies in the range of T: B m unknowns stand for the
d m of the kernel, exactly, for the Hessian and the Gauss-Newton matrix alike. M and γ
are those of the same network with the first product left out and A in W's place.

Two kinds of coordinates s of that range serve the solvers:

    gram          d = T s,  ⟨d, d'⟩ = ⟨s, TᵀT s'⟩,  XXᵀ being all that TᵀT needs: no
                  factorisation, for CG, which knows its vectors by inner products;
    orthonormal   d = blockdiag(Q, I) s,  Xᵀ = Q R:  C stays symmetric in them, for a
                  dense solve, beside which a QR factorisation costs little.

Over devices γ and M v are sums over the devices' examples, one all-reduce each, of
(B, m) numbers for the kernel; X, XXᵀ and every vector are replicated.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from hfdist.parallel import Collectives
from hfdist.problem import Batch, Problem
from hfdist.pytree import PyTree, inner

Linear = Callable[[Any], Any]


class Coordinates(NamedTuple):
    """Where a step is solved for: a problem, and a linear map from coordinates.

    A product with C takes the coordinates s to back(M into(s)).
    """

    problem: Problem
    params: PyTree  # those of `problem`
    into: Linear  # s -> the change that it makes to `params`
    back: Linear  # a gradient in `params` -> coordinates; the adjoint of `into`
    inner: Callable[[Any, Any], jax.Array]  # ⟨d, d'⟩ from s and s'
    expand: Linear  # s -> the step d in the params given


def full(
    problem: Problem, params: PyTree, batch: Batch, devices: Collectives
) -> Coordinates:
    """The params themselves."""
    del batch, devices
    return Coordinates(problem, params, _same, _same, inner, _same)


def gram(
    problem: Problem, params: PyTree, batch: Batch, devices: Collectives
) -> Coordinates:
    """Coordinates for CG: pairs (s, TᵀT s), so that each product is with TᵀT once.

    The params themselves, where the network does not begin with a product inputs @
    kernel or the batch has d examples or more.
    """
    first = _first_product(problem, params, batch, devices)
    if first is None:
        return full(problem, params, batch, devices)
    x_BD = devices.gather(first.inputs)
    gram_BB = devices.gather(_matmul(first.inputs, x_BD.T))

    def with_metric(u):
        return u, first.at_kernel(lambda u_BM: _matmul(gram_BB, u_BM), u)

    return Coordinates(
        problem=first.rest,
        params=first.params,
        into=lambda pair: pair[1],
        back=with_metric,
        inner=lambda a, b: inner(a[0], b[1]),
        # (Sᵀ X)ᵀ, not Xᵀ S: twice as fast on a CPU where m is small.
        expand=lambda pair: first.at_kernel(
            lambda s_BM: _matmul(s_BM.T, x_BD).T, pair[0]
        ),
    )


def orthonormal(
    problem: Problem, params: PyTree, batch: Batch, devices: Collectives
) -> Coordinates:
    """Coordinates for a dense solve; the params themselves as for `gram`."""
    first = _first_product(problem, params, batch, devices)
    if first is None:
        return full(problem, params, batch, devices)
    q_DB, r_BB = jnp.linalg.qr(devices.gather(first.inputs).T)
    return Coordinates(
        problem=first.rest,
        params=first.params,
        into=lambda s: first.at_kernel(lambda s_BM: _matmul(r_BB.T, s_BM), s),
        back=lambda u: first.at_kernel(lambda u_BM: _matmul(r_BB, u_BM), u),
        inner=inner,
        expand=lambda s: first.at_kernel(lambda s_BM: _matmul(q_DB, s_BM), s),
    )


class _FirstProduct(NamedTuple):
    """A network split behind its first product A = X W."""

    rest: Problem  # predicts from params with A (B, m) of all devices as the kernel
    params: PyTree  # such params
    inputs: jax.Array  # X (B, d) of this device
    at_kernel: Callable[[Linear, PyTree], PyTree]  # apply a map to that leaf alone


def _first_product(problem, params, batch, devices) -> _FirstProduct | None:
    """The split, found in the program that predict is; None without such a product."""
    if "inputs" not in batch:
        return None
    leaves, structure = jax.tree.flatten(devices.vary(params))
    program, outputs = jax.make_jaxpr(problem.predict, return_shape=True)(
        structure.unflatten(leaves), batch
    )
    parameters = program.jaxpr.invars[: len(leaves)]
    x = program.jaxpr.invars[len(leaves) + sorted(batch).index("inputs")]
    product = _only_use(program.jaxpr, x)
    if product is None or product.primitive is not core.primitives.dot_general_p:
        return None
    kernel = product.invars[1]
    plain = product.params["dimension_numbers"] == (((1,), (0,)), ((), ()))
    plain &= product.outvars[0].aval.ndim == 2
    if not plain or kernel not in parameters or not _only_use(program.jaxpr, kernel):
        return None
    index = parameters.index(kernel)
    x_BD = batch["inputs"]
    a_BM = devices.gather(x_BD @ jax.tree.leaves(params)[index])
    if len(a_BM) >= x_BD.shape[1]:
        return None

    # What is left of the program takes A where it took the kernel.
    behind = program.jaxpr.replace(
        invars=[product.outvars[0] if v is kernel else v for v in program.jaxpr.invars],
        eqns=[e for e in program.jaxpr.eqns if e is not product],
    )
    run = core.jaxpr_as_fun(core.ClosedJaxpr(behind, program.consts))

    def at_kernel(function, tree):
        leaves, structure = jax.tree.flatten(tree)
        leaves[index] = function(leaves[index])
        return structure.unflatten(leaves)

    def predict(params, batch):
        mine = at_kernel(devices.share, params)
        return jax.tree.structure(outputs).unflatten(
            run(*jax.tree.leaves((mine, batch)))
        )

    rest = Problem(predict, problem.loss)
    return _FirstProduct(rest, at_kernel(lambda _: a_BM, params), x_BD, at_kernel)


def _only_use(program: core.Jaxpr, variable: core.Var) -> core.JaxprEqn | None:
    """The equation that alone uses a variable, which uses it once; None: no such."""
    uses = [e for e in program.eqns for v in e.invars if v is variable]
    escapes = any(v is variable for v in program.outvars)
    return uses[0] if len(uses) == 1 and not escapes else None


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b without the lower precision that an accelerator may choose."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _same(tree: Any) -> Any:
    return tree
