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
from jax.flatten_util import ravel_pytree

from hfdist.curvature import Quadratic
from hfdist.parallel import Collectives
from hfdist.problem import Batch, Problem
from hfdist.pytree import PyTree, inner

Linear = Callable[[Any], Any]


class Coordinates(NamedTuple):
    """Where a step is solved for: a problem, and a linear map from coordinates."""

    problem: Problem
    params: PyTree  # those of `problem`
    into: Linear  # s -> the change that it makes to `params`
    back: Linear  # a gradient in `params` -> coordinates; the adjoint of `into`
    inner: Callable[[Any, Any], jax.Array]  # ⟨d, d'⟩ from s and s'
    expand: Linear  # s -> the step d in the params given


def pulled_back(model: Quadratic, space: Coordinates) -> Quadratic:
    """A quadratic model in the params of a space, as one in its coordinates."""
    return Quadratic(
        value=model.value,
        gradient=space.back(model.gradient),
        product=lambda s: space.back(model.product(space.into(s))),
    )


def full(problem: Problem, params: PyTree) -> Coordinates:
    """The params themselves."""
    return Coordinates(problem, params, _same, _same, inner, _same)


def gram(first: "FirstProduct", devices: Collectives) -> Coordinates:
    """Coordinates for CG: s and TᵀT s side by side, for one product with XXᵀ a step.

    Each is one flat vector: beside a small network every array costs time of its own.
    """
    x_BD = devices.gather(first.inputs)
    gram_BB = devices.gather(_matmul(first.inputs, x_BD.T))

    def back(u):
        others, u_BM = first.split(u)
        both = u_BM, _matmul(gram_BB, u_BM)
        return tuple(jnp.concatenate([others, part.ravel()]) for part in both)

    _, a_BM = first.split(first.params)

    def parts(flat):
        return flat[: -a_BM.size], flat[-a_BM.size :].reshape(a_BM.shape)

    def expand(vector):
        others, s_BM = parts(vector[0])
        # (Sᵀ X)ᵀ, not Xᵀ S: twice as fast on a CPU where m is small.
        return first.join(others, _matmul(s_BM.T, x_BD).T)

    return Coordinates(
        problem=first.rest,
        params=first.params,
        into=lambda vector: first.join(*parts(vector[1])),
        back=back,
        inner=lambda a, b: inner(a[0], b[1]),
        expand=expand,
    )


def orthonormal(first: "FirstProduct", devices: Collectives) -> Coordinates:
    """Coordinates for a dense solve, a pytree like the params."""
    q_DB, r_BB = jnp.linalg.qr(devices.gather(first.inputs).T)

    def times(matrix, tree):
        others, kernel = first.split(tree)
        return first.join(others, _matmul(matrix, kernel))

    return Coordinates(
        problem=first.rest,
        params=first.params,
        into=lambda s: times(r_BB.T, s),
        back=lambda u: times(r_BB, u),
        inner=inner,
        expand=lambda s: times(q_DB, s),
    )


class FirstProduct(NamedTuple):
    """A network split behind its first product A = X W."""

    rest: Problem  # predicts from params with A (B, m) of all devices as the kernel
    params: PyTree  # such params
    inputs: jax.Array  # X (B, d) of this device
    split: Callable[[PyTree], tuple[jax.Array, jax.Array]]  # the other leaves, W's
    join: Callable[[jax.Array, jax.Array], PyTree]


def first_product(
    problem: Problem, params: PyTree, batch: Batch, devices: Collectives
) -> FirstProduct | None:
    """The split, found in the program that predict is.

    None if it does not begin with inputs @ kernel, or the batch has d examples or more.
    """
    if "inputs" not in batch:
        return None
    leaves, structure = jax.tree.flatten(params)
    traced = jax.make_jaxpr(problem.predict, return_shape=True)
    program, outputs = traced(devices.vary(params), batch)
    x = program.jaxpr.invars[len(leaves) + sorted(batch).index("inputs")]
    product = _product(program.jaxpr, x, program.jaxpr.invars[: len(leaves)])
    if product is None:
        return None
    x_BD, kernel = batch["inputs"], product.invars[1]
    index = program.jaxpr.invars.index(kernel)
    a_BM = devices.gather(x_BD @ leaves[index])
    if len(a_BM) >= x_BD.shape[1]:
        return None
    # The program without the product takes A where it took the kernel.
    behind = program.jaxpr.replace(
        invars=[product.outvars[0] if v is kernel else v for v in program.jaxpr.invars],
        eqns=[equation for equation in program.jaxpr.eqns if equation is not product],
    )
    run = core.jaxpr_as_fun(program.replace(jaxpr=behind))

    def predict(params, batch):
        leaves = jax.tree.leaves(params)
        leaves[index] = devices.share(leaves[index])
        results = run(*leaves, *jax.tree.leaves(batch))
        return jax.tree.structure(outputs).unflatten(results)

    def split(tree):
        leaves = jax.tree.leaves(tree)
        kernel = leaves.pop(index)
        return ravel_pytree(leaves)[0], kernel

    _, unravel = ravel_pytree(leaves[:index] + leaves[index + 1 :])

    def join(others, kernel):
        leaves = unravel(others)
        leaves.insert(index, kernel)
        return structure.unflatten(leaves)

    rest = Problem(predict, problem.loss)
    return FirstProduct(rest, join(split(params)[0], a_BM), x_BD, split, join)


def _product(program: core.Jaxpr, x: core.Var, params: list) -> core.JaxprEqn | None:
    """The equation x @ W, if it is the only use of both and W one of the params."""
    product = _only_use(program, x)
    if product is None or product.primitive is not core.primitives.dot_general_p:
        return None
    kernel = product.invars[1]
    plain = product.params["dimension_numbers"] == (((1,), (0,)), ((), ()))
    plain &= len(getattr(x.aval, "shape", ())) == 2
    if not plain or isinstance(kernel, core.Literal) or kernel not in params:
        return None
    return product if _only_use(program, kernel) else None


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
