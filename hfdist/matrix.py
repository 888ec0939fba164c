"""The curvature of a batch as a matrix that is never written down.

    C = hfdist.curvature(problem, params, batch)

    C.product(v)            C v
    C.solve(v, damping=λ)   (C + λI)⁻¹ v
    C.diagonal()            Cᵢᵢ, exact or estimated
    C.lanczos(k)            the k eigenpairs of largest |θ|

C is the Gauss-Newton matrix or the Hessian of f (see quadratics.py), without damping. A
call is one program, in which f is linearised once, over all devices. It is compiled
once for all params and batches of the same shapes, if predict and loss are the same
functions: define them once, outside your loop. A Matrix is a pytree and may be made in,
or passed to, a function under `jax.jit`, `vmap` or `scan`.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from optax import tree

from hfdist import curvatures
from hfdist.batches import check_batch, entry_name, is_replicated
from hfdist.checks import (
    Count,
    NonNegative,
    Whole,
    check_choice,
    fitted,
    refusal,
    shown,
)
from hfdist.choices import choices
from hfdist.eigenpairs import Pairs, largest_pairs
from hfdist.errors import UsageError
from hfdist.methods.method import check_params, one_a_row
from hfdist.parallel import collectives, data_parallel
from hfdist.problem import Batch, Problem, penalised
from hfdist.pytree import PyTree, parameter_count, working_dtype
from hfdist.quadratics import Curvature, quadratic
from hfdist.solvers.cg import CG
from hfdist.solvers.solution import Solution
from hfdist.solvers.solver import Solver
from hfdist.solvers.system import System

Seed = Annotated[int, Whole(0)]
BLOCK = 128  # unit vectors multiplied at once for an exact diagonal


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "batch", "l2"],
    meta_fields=["predict", "loss", "kind", "mesh", "replicated", "stacked"],
)
@dataclass(frozen=True, eq=False)
class Matrix:
    """The symmetric matrix C (N, N) of a batch; `hfdist.curvature` makes one.

    Vectors are pytrees like the params. They are cast to, and results have, the working
    dtype: the widest leaf's, float32 at least.
    """

    predict: Callable[[PyTree, Any], Any]
    loss: Callable[[Any, Any], Array]
    l2: Any  # None: no penalty
    params: PyTree
    batch: Batch  # leaves (B, …), or (S, B, …) where stacked
    kind: Curvature
    mesh: Mesh | None
    replicated: tuple[str, ...]
    stacked: bool

    def product(self, v: PyTree) -> PyTree:
        """C v, for one gradient's price or two; `jax.vmap(C.product)` takes several.

        Raises UsageError for a v that is not like the params.
        """
        return _product(self, self._vector(v))

    def solve(
        self, v: PyTree, damping: Any = 0.0, solver: Solver | None = None
    ) -> Solution:
        """x with (C + λI) x ≈ v.

        By truncated conjugate gradients, of `CG()` if none is given, or exactly by
        `Dense()`, which writes C down. The Solution says how near x is, and whether C +
        λI was seen not to be positive definite, as an undamped Hessian is. Raises
        UsageError for a negative damping, and where the dense matrix cannot fit.
        """
        solver = CG() if solver is None else solver
        if not isinstance(solver, Solver):
            raise refusal("solver", solver, "hfdist.CG(...) or hfdist.Dense(...)")
        if not isinstance(damping, Tracer):
            fitted("damping", damping, NonNegative)
        return _solve(self, self._vector(v), damping, solver)

    def diagonal(self, probes: int | None = None, key: Array | None = None) -> PyTree:
        """The diagonal of C, like the params: exact, or a mean over random probes.

            d = 1/P Σₚ zₚ ∘ C zₚ,   E[d] = diag(C),   Var[dᵢ] = 1/P Σⱼ≠ᵢ Cᵢⱼ²

        with entries of z that are 1 or -1 by chance (Hutchinson 1990; Bekas,
        Kokiopoulou & Saad 2007). Without probes it is exact, for N products. Raises
        UsageError for probes without a key of `jax.random`.
        """
        if probes is None:
            return _exact_diagonal(self)
        if not _is_key(key):
            raise UsageError(
                f"diagonal(probes=...) draws its probes at random, and key is "
                f"{shown(key)}: give it one, key=jax.random.key(0)"
            )
        return _estimated_diagonal(self, key, fitted("probes", probes, Count))

    def lanczos(self, k: int, seed: int = 0) -> Pairs:
        """The k eigenpairs C v = θ v of largest |θ|, by ARPACK's restarted Lanczos.

        values_K (K,), vectors with leaves (K, …) of norm 1, and residuals_K
        ‖C v - θ v‖, 1e-7 of |θ| (1e-5 in float32). ARPACK runs on the host, a product
        at a time, and keeps some 2 k vectors. Raises UsageError under `jax.jit`, and
        for a k that is not less than N.
        """
        count = parameter_count(self.params)
        k, seed = fitted("k", k, Count), fitted("seed", seed, Seed)
        if k >= count:
            raise refusal("k", k, f"less than the {count} params")
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(self)):
            raise UsageError(
                "lanczos runs on the host, on numbers that are known: call it outside "
                "jax.jit"
            )

        eps = float(jnp.finfo(self.dtype).eps)
        found = largest_pairs(self.rows, count, k, seed, eps)
        _, unravel = ravel_pytree(tree.cast(self.params, self.dtype))
        vectors = jax.vmap(unravel)(jnp.asarray(found.vectors.T, self.dtype))
        return found._replace(vectors=vectors)

    def rows(self, v_PN: np.ndarray) -> np.ndarray:
        """C v for raveled vectors in rows, all at once, on the host in float64."""
        return np.asarray(_rows(self, np.asarray(v_PN, self.dtype)), np.float64)

    @property
    def dtype(self) -> Any:
        """The dtype of vectors and products."""
        return working_dtype(self.params)

    def _vector(self, v: PyTree) -> PyTree:
        """v in the working dtype. Raises UsageError unless it is like the params."""
        given, wanted = (jax.tree.structure(x) for x in (v, self.params))
        if given != wanted:
            raise UsageError(
                f"the vector is {given}: use one like the params, {wanted}"
            )
        for (path, leaf), own in zip(
            jax.tree_util.tree_leaves_with_path(v),
            jax.tree.leaves(self.params),
            strict=True,
        ):
            if jnp.shape(leaf) != own.shape:
                raise UsageError(
                    f"the vector{jax.tree_util.keystr(path)} has shape "
                    f"{jnp.shape(leaf)}: use that of the params, {own.shape}"
                )
            if jnp.iscomplexobj(leaf):
                raise UsageError(
                    f"the vector{jax.tree_util.keystr(path)} is complex: C is real, so "
                    f"multiply its real and its imaginary part apart"
                )
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, self.dtype), v)

    def _apply(self, work: Callable, *arguments: Any) -> Any:
        """work(product, *arguments), f being linearised once for all the products."""
        if self.stacked:
            return work(self._mean_product, *arguments)
        devices = collectives(self.mesh, self.replicated)
        loss = self.loss if self.mesh is None else one_a_row(self.loss, self.replicated)

        def local(arguments, l2, params, batch):
            problem = Problem(self.predict, loss, 0.0 if l2 is None else l2)
            model = quadratic(problem, params, batch, self.kind, devices)
            return work(model.product, *arguments)

        run = data_parallel(local, self.mesh, self.replicated)
        return run(arguments, self.l2, self.params, self.batch)

    def _mean_product(self, v: PyTree) -> PyTree:
        """C v = Σ_S share_S · C_S v, share_S = (Σ wᵢ of batch S) / Σ wᵢ."""
        batches, weights_SB = self.batch, self.batch.get("weights")
        if weights_SB is None:
            weights_S = jnp.ones(len(jax.tree.leaves(batches)[0]), self.dtype)
        else:
            weights_S = jnp.sum(jnp.asarray(weights_SB, self.dtype), axis=1)
            # A batch that is all padding has no mean, and no share.
            batches = _weighing(weights_S == 0, batches)

        def add(total, batch_and_share):
            batch, share = batch_and_share
            one = replace(self, batch=batch, stacked=False)
            return tree.add_scale(total, share, one._apply(_of_vector, v)), None

        shares_S = weights_S / jnp.sum(weights_S)
        total, _ = jax.lax.scan(add, tree.zeros_like(v), (batches, shares_S))
        return total


def curvature(
    problem: Problem,
    params: PyTree,
    batch: Batch,
    curvature: Curvature = "gauss_newton",
    mesh: Mesh | None = None,
    replicated: Collection[str] = (),
    stacked: bool = False,
) -> Matrix:
    """The curvature matrix C of the batch's f at params, weight decay included.

        "gauss_newton"       C = Jᵀ H_z J + diag(μ), positive semi-definite
        "layerwise_gauss_newton"  the same, but for its blocks between layers
        "hessian"            C = ∇²f
        "finite_difference"  C v = (∇f(w + εv) - ∇f(w)) / ε

    With a mesh, the rows of the batch are split over its devices, but for the entries
    named in `replicated`. For more examples than fit at once, `stacked` batches, leaves
    (S, B, …), are taken one after the other: C is that of all their examples, in the
    memory of one batch.

    Raises UsageError for params, batches and losses that do not fit: see the messages.
    """
    check_choice("curvature", curvature, choices(curvatures))
    if isinstance(replicated, str):
        raise UsageError(f"replicated is {replicated!r}: use ({replicated!r},)")
    check_params(problem, params)
    check_batch(batch, replicated)
    if stacked:
        _check_stacked(batch, replicated)
    for name in ("predict", "loss"):
        _check_hashable(name, getattr(problem, name))
    return Matrix(
        predict=problem.predict,
        loss=problem.loss,
        l2=problem.l2 if penalised(problem) else None,
        params=params,
        batch=batch,
        kind=curvature,
        mesh=mesh,
        replicated=tuple(replicated),
        stacked=stacked,
    )


def _check_stacked(batch: Batch, replicated: Collection[str]) -> None:
    """Raise UsageError for leaves that are not (S, B, …), or (S, …) if replicated."""
    shapes = {
        path: jnp.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
    }
    batches = {shape[:1] for shape in shapes.values()}
    for path, shape in shapes.items():
        least = 1 if is_replicated(path, replicated) else 2
        if len(shape) < least or len(batches) > 1:
            raise UsageError(
                f"batch{jax.tree_util.keystr(path)} has shape {shape}: stacked batches "
                f"have leaves (S, B, …), one S for all, and (S, …) where replicated"
            )


def _weighing(padding_S: Array, batches: Batch) -> Batch:
    """The batches, in those that are padding every weight being 1."""

    def weighed(path, leaf):
        if entry_name(path) != "weights":
            return leaf
        return jnp.where(padding_S[:, None], jnp.ones_like(leaf), leaf)

    return jax.tree_util.tree_map_with_path(weighed, batches)


def _is_key(key: Any) -> bool:
    """Whether it is one key of jax.random, of the new kind or the old."""
    if not isinstance(key, Array | np.ndarray):
        return False
    new = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key.ndim == 0 if new else (key.dtype, key.ndim) == (jnp.uint32, 1)


def _check_hashable(name: str, function: Any) -> None:
    try:
        hash(function)
    except TypeError:
        raise UsageError(
            f"{name} is a {type(function).__name__} that cannot be hashed, by which "
            f"its compiled program is found again: wrap it in a function"
        ) from None


def _of_vector(product: Callable, v: PyTree) -> PyTree:
    return product(v)


@jax.jit
def _product(matrix: Matrix, v: PyTree) -> PyTree:
    return matrix._apply(_of_vector, v)


@jax.jit
def _rows(matrix: Matrix, v_PN: Array) -> Array:
    """C v of raveled vectors."""
    _, unravel = ravel_pytree(tree.cast(matrix.params, matrix.dtype))

    def image(v_N):
        return ravel_pytree(matrix._apply(_of_vector, unravel(v_N)))[0]

    return jax.vmap(image)(v_PN)


@partial(jax.jit, static_argnames="solver")
def _solve(matrix: Matrix, b: PyTree, damping: Any, solver: Solver) -> Solution:
    def work(product, b, damping):
        damped = System(lambda x: tree.add_scale(product(x), damping, x), b)
        return solver.solve(damped)

    return matrix._apply(work, b, jnp.asarray(damping, matrix.dtype))


@jax.jit
def _exact_diagonal(matrix: Matrix) -> PyTree:
    flat_N, unravel = ravel_pytree(tree.cast(matrix.params, matrix.dtype))

    def work(product):
        def entry(i):
            unit_N = jnp.zeros_like(flat_N).at[i].set(1)
            return ravel_pytree(product(unravel(unit_N)))[0][i]

        places = jnp.arange(flat_N.size)
        return unravel(jax.lax.map(entry, places, batch_size=BLOCK))

    return matrix._apply(work)


@partial(jax.jit, static_argnames="probes")
def _estimated_diagonal(matrix: Matrix, key: Array, probes: int) -> PyTree:
    def work(product, keys_P):
        def add(total, key):
            z = tree.random_like(
                key, matrix.params, jax.random.rademacher, matrix.dtype
            )
            return tree.add(total, tree.mul(z, product(z))), None

        start = tree.zeros_like(matrix.params, dtype=matrix.dtype)
        total, _ = jax.lax.scan(add, start, keys_P)
        return tree.scale(1 / probes, total)

    return matrix._apply(work, jax.random.split(key, probes))
