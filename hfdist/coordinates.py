"""Where a step is solved for: in all the params, or in the span of a batch's inputs.

A network that begins with A = X W (inputs X (B, d), kernel W (d, m)) depends on W
through A alone. With γ and M the gradient and the curvature in (A, other params),

    g = T γ,   C = T M Tᵀ,   T = blockdiag(Xᵀ, I),

so the solution of (C + λI) d = -g lies in the range of T: B m unknowns stand for the
d m of the kernel, exactly, for the Hessian and the Gauss-Newton matrix alike. M and γ
are those of the same network with the first product left out and A in W's place;
first_product.py leaves it out.

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

from hfdist.first_product import FirstProduct
from hfdist.parallel import Collectives
from hfdist.problem import Problem
from hfdist.pytree import PyTree, inner, same
from hfdist.quadratics import Quadratic

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
        value_at=lambda s: model.value_at(space.into(s)),
        form=lambda vectors: model.form([space.into(s) for s in vectors]),
        # The matrix is that of the params, which coordinates may be.
        matrix=model.matrix if space.into is same else None,
    )


def full(problem: Problem, params: PyTree, devices: Collectives) -> Coordinates:
    """The params themselves, or shards of them."""
    vectors = devices.vectors

    def expand(vector):
        return vectors.expand(vector, params)

    return Coordinates(problem, params, same, same, vectors.inner, expand)


def gram(first: FirstProduct, devices: Collectives) -> Coordinates:
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


def orthonormal(first: FirstProduct, devices: Collectives) -> Coordinates:
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


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b without the lower precision that an accelerator may choose."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
