"""Physics-informed nets: a differential equation, solved by a net at points."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hfdist.checks import Count, Positive, Whole
from hfdist.errors import UsageError
from hfdist.jacobian import with_jacobian
from hfdist.models.model import functional
from hfdist.problem import Problem
from hfdist.tasks.examples import Arrays
from hfdist.tasks.task import Task

Function = Callable[[Array], Array]  # of points (B, D), row by row -> (B,)


def laplacian(u: Function, x_BD: Array) -> Array:
    """Δu = Σ_d ∂²u/∂x_d² at points, (B,): forward over forward, one axis at a time.

    On a CPU a fifth faster, products with its Jacobian included, than Taylor mode
    (jax.experimental.jet), and a third than forward over reverse.
    """

    def second(d: int) -> Array:
        along_BD = jnp.zeros_like(x_BD).at[:, d].set(1)

        def first(x_BD: Array) -> Array:
            return jax.jvp(u, (x_BD,), (along_BD,))[1]

        return jax.jvp(first, (x_BD,), (along_BD,))[1]

    return jnp.sum(jnp.stack([second(d) for d in range(x_BD.shape[1])]), 0)


@dataclass(frozen=True, kw_only=True)
class Poisson(Task):
    """-Δu = f in the unit square, u given on its boundary, solved by a net u(x; w):

        f(w) = mean (Δu + f)² over interior points + β mean (u - u*)² over boundary
               points,   u*(x) = sin πx₁ sin πx₂,   f = 2π² u*

    The points are a regular grid, which needs no seed: as many drawn at random end
    with an error up to twice as large. The derivatives in x stand in predict, whose
    outputs are -Δu in the interior and u elsewhere. Evaluations report the relative
    error ‖u - u*‖ / ‖u*‖ over a denser grid; of the training points the loss alone.
    """

    side: Count = 30
    """Points along a side: side² in the interior and 4 side on the boundary."""
    boundary_weight: Positive = 100.0
    """β, the weight of the boundary's mean square."""
    test_side: Annotated[int, Whole(2)] = 101
    """Points along a side of the grid that the error is measured on."""
    jacobian: bool = True
    """Write the Jacobian of all points down, once a step: cheaper for few params."""

    def examples(self, split):
        """inputs (n, 2) and targets (n,), what predict should return there.

        Of the training points also interior (n,) and factor (n,), by which their
        squared errors enter the mean over all points.
        """
        if split == "test":
            return Arrays(self._known_values())
        inside, around = _inside(self.side), _around(self.side)
        x = np.concatenate([inside, around])
        interior = np.arange(len(x)) < len(inside)
        factor = (len(x) / len(inside), self.boundary_weight * len(x) / len(around))
        return Arrays(
            {
                "inputs": x,
                "targets": np.where(interior, source(x), solution(x)),
                "interior": interior,
                "factor": np.where(interior, *factor),
            }
        )

    def problem(self, model, seed):
        if getattr(model, "activation", None) == "relu":
            raise UsageError(
                "a network of relu has no second derivative, which the equation is of: "
                "use a smooth activation, --model.activation tanh"
            )
        net, params = functional(model.build(2, 1, seed))

        def predict(params, batch):
            def u(x_BD):
                return net(params, {"inputs": x_BD})[:, 0]

            x_BD = batch["inputs"]
            if "interior" not in batch:
                return u(x_BD)
            return jnp.where(batch["interior"], -laplacian(u, x_BD), u(x_BD))

        chosen = with_jacobian(predict) if self.jacobian else predict
        return Problem(chosen, loss), params

    def figures(self, outputs, batch):
        """The squares of u - u* and of u*, where the outputs are u."""
        if "interior" in batch:
            return {}
        return {
            "squared_error": jnp.square(outputs - batch["targets"]),
            "squared_solution": jnp.square(batch["targets"]),
        }

    def report(self, means):
        if "squared_error" not in means:
            return {}
        ratio = means["squared_error"] / means["squared_solution"]
        return {"relative_error": math.sqrt(ratio)}

    def _known_values(self):
        along = np.linspace(0, 1, self.test_side)
        x = _grid(along)
        return {"inputs": x, "targets": solution(x)}


def solution(x_BD: np.ndarray) -> np.ndarray:
    """u*."""
    return np.prod(np.sin(np.pi * x_BD), -1)


def source(x_BD: np.ndarray) -> np.ndarray:
    """f = -Δu*."""
    return 2 * np.pi**2 * solution(x_BD)


def loss(outputs, batch):
    """The squared error of each point, times its factor."""
    return batch.get("factor", 1) * jnp.square(outputs - batch["targets"])


def _grid(along: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(along, along), -1).reshape(-1, 2)


def _inside(side: int) -> np.ndarray:
    """The centres of side² squares."""
    return _grid((np.arange(side) + 0.5) / side)


def _around(side: int) -> np.ndarray:
    """Once around the boundary, from corner to corner in steps of 1 / side."""
    t = np.arange(side) / side
    low, high = np.zeros(side), np.ones(side)
    edges = (t, low), (high, t), (1 - t, high), (low, 1 - t)
    return np.concatenate([np.stack(edge, -1) for edge in edges])
