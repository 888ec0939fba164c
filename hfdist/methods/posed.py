"""What a step solves, and where: in all params, or the span of inputs or outputs.

All give the same step. The choice is by sizes: a solve in n unknowns takes about n
products, and each costs in proportion to the params that it is of.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from jax import Array
from jax.flatten_util import ravel_pytree
from optax import tree

from hfdist.coordinates import Coordinates, full, gram, orthonormal, pulled_back
from hfdist.first_product import Shorter, first_product, shorten
from hfdist.outputs import outputs_of, solved_by_outputs
from hfdist.parallel import Collectives
from hfdist.preconditioner import Samples
from hfdist.problem import Batch, Problem
from hfdist.pytree import PyTree, parameter_count
from hfdist.quadratics import (
    Curvature,
    Quadratic,
    quadratic,
    value_and_gradient,
    value_at,
)
from hfdist.roots import has_root
from hfdist.samples import samples_of
from hfdist.scales import grown, metric
from hfdist.solvers.dense import materialise, shifted, solved
from hfdist.solvers.solution import Solution
from hfdist.solvers.solver import Solver
from hfdist.solvers.system import System

Solve = Callable[[System, Array], Solution]  # A x = b, A = C + λD, and that λ


class Way(NamedTuple):
    """How a method solves, and where it can."""

    curvature: Curvature
    solver: Solver
    not_by_inputs: str  # why not in the span of the inputs; "": it can
    by_outputs: bool  # whether it can in that of the outputs


class ByOutputs(NamedTuple):
    """In the span of the outputs of all examples."""

    unknowns: int  # M


Place = Shorter | ByOutputs | str  # text: why for all the params


class Posed(NamedTuple):
    """What one step solves, with any λ."""

    space: Coordinates
    model: Quadratic  # of f, in those coordinates
    solve: Solve
    scales: PyTree  # D, like the params; None: I
    samples: Samples


class Examples(NamedTuple):
    """What f and its products are of."""

    problem: Problem
    params: PyTree
    batch: Batch  # of the products
    devices: Collectives


def posed(
    way: Way,
    at: Examples,
    gradient: PyTree | None,
    batch: Batch | None,
    scales: PyTree,
) -> Posed:
    """The step's question; batch: of all but the products, None for theirs.

    scales: D so far.
    """
    problem, params, examples, devices = at
    alone = gradient is None and batch is None
    place = place_of(way, at, alone)
    with jax.named_scope("gradient"):
        space = _coordinates(way, place, at)
        model = quadratic(space.problem, space.params, examples, way.curvature, devices)
        if batch is not None:
            value, own = value_and_gradient(problem, params, batch, devices)
            at_d = partial(value_at, problem, params, batch, devices)
            model = model._replace(value=value, gradient=own, value_at=at_d)
        if gradient is not None:
            given = tree.cast(gradient, model.value.dtype)
            model = model._replace(gradient=devices.vectors.part(given))
        model = pulled_back(model, space)
    with jax.named_scope("solve"):
        solve, scales = _solve(way, place, at, model, scales)
    samples = samples_of(problem, params, examples, devices)
    return Posed(space, model, solve, scales, samples)


def place_of(way: Way, at: Examples, alone: bool) -> Place:
    """Where the solve costs least; alone: whether the gradient is of the same batch."""
    problem, params, batch, devices = at
    place = _by_inputs(way, at, alone)
    if not way.by_outputs or devices.micro_batch_size is not None:
        return place
    outputs = jax.eval_shape(problem.predict, devices.vary(params), batch)
    # μ as one number beside λ.
    fits = has_root(problem.loss, outputs) and jax.tree_util.all_leaves([problem.l2])
    unknowns, n = devices.size * parameter_count(outputs), parameter_count(params)
    otherwise = place.unknowns if isinstance(place, Shorter) else n
    return ByOutputs(unknowns) if fits and unknowns * n < otherwise**2 else place


def explained(place: Place, n: int) -> str:
    """The place in words, for a problem of n params."""
    if isinstance(place, str):
        return f"solves for all {n:,} params, as {place}"
    span = "inputs" if isinstance(place, Shorter) else "outputs"
    return f"solves in the span of the {span}: {place.unknowns:,} unknowns, not {n:,}"


def _by_inputs(way: Way, at: Examples, alone: bool) -> Shorter | str:
    """The network behind its first product, or why the solve is not reduced."""
    problem, params, batch, devices = at
    if way.not_by_inputs:
        return way.not_by_inputs
    if devices.vectors.shared:
        return "its vectors are shared out over the devices"
    if devices.micro_batch_size is not None:
        return "the batch is taken in micro-batches"
    if not alone or "inputs" in devices.replicated:
        return "the gradient is of other examples than the products"
    params = devices.vary(params)
    return shorten(problem, params, batch, devices.size, way.solver.held)


def _coordinates(way: Way, place: Place, at: Examples) -> Coordinates:
    problem, params, batch, devices = at
    if not isinstance(place, Shorter):
        return full(problem, params, devices)
    first = first_product(place, problem.loss, params, batch, devices)
    return (gram if way.solver.by_inner_products else orthonormal)(first, devices)


def _solve(
    way: Way, place: Place, at: Examples, model: Quadratic, scales: PyTree
) -> tuple[Solve, PyTree]:
    """(A x = b, λ) -> x for A = C + λD and any λ, and D; what C gives is made once."""
    solver = way.solver
    if isinstance(place, ByOutputs):
        outputs = outputs_of(*at)
        kernel_MM = solver.written(outputs.kernel, outputs.like)
        assert kernel_MM is not None, "a method by outputs has a solver that writes"
        return lambda system, damping: solved_by_outputs(
            outputs, kernel_MM, system, damping + at.problem.l2
        ), None
    by_products = partial(materialise, model.product, model.gradient)
    matrix_NN = solver.written(model.matrix or by_products, model.gradient)
    if matrix_NN is None:
        return lambda system, damping: solver.solve(system), None
    if scales is not None:
        scales = grown(scales, matrix_NN)
    d_N, _ = ravel_pytree(metric(scales)(tree.ones_like(model.gradient)))
    return lambda system, damping: solved(
        shifted(matrix_NN, damping * d_N), system
    ), scales
