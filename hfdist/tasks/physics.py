"""The contract of a physics-informed task: an equation, solved by a net at points.

    N(u) = f inside a domain,   u = u* on its boundary,   u(x) = net(x; w)

B: points, D: dimensions, time among them.
"""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

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


class Along(NamedTuple):
    """A function of points and its derivatives along one of the axes, (B,) each."""

    value: Array  # u
    slope: Array  # ∂u/∂x_d
    curvature: Array  # ∂²u/∂x_d²


def along(u: Function, x_BD: Array, d: int) -> Along:
    """u and its derivatives in x_d at points, forward over forward.

    On a CPU ten products with the Jacobian take 0.7 times as long as in Taylor mode
    (jax.experimental.jet) for Poisson's equation in two dimensions, 1.1 in five; a
    Jacobian that is written down the same.
    """
    axis_BD = jnp.zeros_like(x_BD).at[:, d].set(1)

    def value_and_slope(x_BD: Array) -> tuple[Array, Array]:
        return jax.jvp(u, (x_BD,), (axis_BD,))

    (value, slope), (_, curvature) = jax.jvp(value_and_slope, (x_BD,), (axis_BD,))
    return Along(value, slope, curvature)


def laplacian(u: Function, x_BD: Array) -> Array:
    """Δu = Σ_d ∂²u/∂x_d² at points, (B,)."""
    axes = range(x_BD.shape[1])
    return jnp.sum(jnp.stack([along(u, x_BD, d).curvature for d in axes]), 0)


@dataclass(frozen=True, kw_only=True)
class Physics(Task):
    """An equation N(u) = f with u known on the boundary, solved by a net u(x; w):

        f(w) = mean (N(u) - f)² over interior points + β mean (u - u*)² over boundary
               points

    The derivatives in x stand in predict, whose outputs are N(u) in the interior and u
    elsewhere. Evaluations report the relative error ‖u - u*‖ / ‖u*‖ over points of
    their own; of the training points the loss alone.
    """

    boundary_weight: Positive = 100.0
    """β, the weight of the boundary's mean square."""
    jacobian: bool = True
    """Write the Jacobian of all points down, once a step: cheaper for few params."""

    @property
    @abc.abstractmethod
    def box(self) -> np.ndarray:
        """The least and the greatest coordinates, (2, D)."""

    @property
    def dimensions(self) -> int:
        """D."""
        return self.box.shape[1]

    @property
    def coordinates(self) -> tuple[str, ...]:
        """The names of the axes, for people."""
        return tuple(f"x_{d + 1}" for d in range(self.dimensions))

    @abc.abstractmethod
    def operator(self, u: Function, x_BD: Array) -> Array:
        """N(u) at points, (B,)."""

    @abc.abstractmethod
    def source(self, x_BD: np.ndarray) -> np.ndarray:
        """f, (B,)."""

    @abc.abstractmethod
    def solution(self, x_BD: np.ndarray) -> np.ndarray:
        """u*, (B,)."""

    @abc.abstractmethod
    def inside(self) -> np.ndarray:
        """The training points in the interior, (n, D)."""

    @abc.abstractmethod
    def around(self) -> np.ndarray:
        """Those on the boundary, (m, D)."""

    @abc.abstractmethod
    def tested(self) -> np.ndarray:
        """The points that the error is measured at, (k, D)."""

    def examples(self, split):
        """inputs (n, D) and targets (n,), what predict should return there.

        Of the training points also interior (n,) and factor (n,), by which their
        squared errors enter the mean over all points.
        """
        if split == "test":
            x = self.tested()
            return Arrays({"inputs": x, "targets": self.solution(x)})
        inside, around = self.inside(), self.around()
        x = np.concatenate([inside, around])
        interior = np.arange(len(x)) < len(inside)
        factor = (len(x) / len(inside), self.boundary_weight * len(x) / len(around))
        return Arrays(
            {
                "inputs": x,
                "targets": np.append(self.source(inside), self.solution(around)),
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
        net, params = functional(model.build(self.dimensions, 1, seed))

        def predict(params, batch):
            def u(x_BD):
                return net(params, {"inputs": x_BD})[:, 0]

            x_BD = batch["inputs"]
            if "interior" not in batch:
                return u(x_BD)
            return jnp.where(batch["interior"], self.operator(u, x_BD), u(x_BD))

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


@dataclass(frozen=True, kw_only=True)
class Drawn(Physics):
    """An equation in a box, at points that are drawn evenly from a seed."""

    interior: Count = 900
    """Points in the interior."""
    boundary: Count = 120
    """Points on the boundary."""
    draws: Count = 1
    """Sets of points, as large as said. One is the same in every step whose batch is
    all of it; with as many as steps each step has fresh ones."""
    point_seed: Annotated[int, Whole(0, 2**32 - 1)] = 0
    """Seed by which the points are drawn."""

    @property
    def faces(self) -> tuple[tuple[int, int], ...]:
        """Where u is known: an axis, and 0 for its least or 1 for its greatest end."""
        return tuple((d, end) for d in range(self.dimensions) for end in (0, 1))

    def inside(self):
        return self._within(self.draws * self.interior, 0)

    def around(self):
        """On each face the same number, but for one."""
        x = self._within(self.draws * self.boundary, 1)
        axes, ends = np.array(self.faces)[np.arange(len(x)) % len(self.faces)].T
        x[np.arange(len(x)), axes] = self.box[ends, axes]
        return x

    def tested(self):
        return self._within(TESTED, 2)

    def _within(self, points: int, stream: int) -> np.ndarray:
        rng = np.random.default_rng((self.point_seed, stream))
        return rng.uniform(*self.box, size=(points, self.dimensions))


TIME, SPACE = 0, 1


class Evolution(Drawn):
    """An equation N(u) = 0 of x = (t, x), u known at first and at both ends."""

    @property
    def coordinates(self):
        return "t", "x"

    @property
    def faces(self):
        return (TIME, 0), (SPACE, 0), (SPACE, 1)

    def source(self, x_BD):
        return np.zeros(len(x_BD))


TESTED = 10_000  # points that an error is measured at: the third digit of it is chance


def loss(outputs, batch):
    """The squared error of each point, times its factor."""
    return batch.get("factor", 1) * jnp.square(outputs - batch["targets"])
