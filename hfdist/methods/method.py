"""The contract of an optimisation method, and how it becomes an optax transformation.

A method is a frozen dataclass of hyper-parameters with `build(problem, mesh=None)`. To
add one, write one file beside this one; a config imports its class.
"""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from hfdist.errors import UsageError
from hfdist.parallel import data_parallel
from hfdist.problem import Problem
from hfdist.pytree import PyTree


class Info(NamedTuple):
    """What one update did, in scalars; 0 where a method has no such quantity."""

    loss: Array  # f(w) of the batch, before the update
    damping: Array  # the λ that the update was made with
    rho: Array  # reduction ratio; NaN unless the damping rule needs it
    cg_steps: Array
    cg_residual: Array  # ‖b - A x‖ / ‖b‖ of the linear solve
    step_norm: Array  # ‖step‖, also of a step that was not accepted
    accepted: Array  # bool; False: the update is zero
    indefinite: Array  # bool; the solver met negative curvature


class State(NamedTuple):
    """A method's memory: `inner` is the method's own, `info` the last update's."""

    inner: Any
    info: Info


@dataclass(frozen=True, kw_only=True)
class Method(abc.ABC):
    """Hyper-parameters of an optimisation method."""

    @abc.abstractmethod
    def build(
        self, problem: Problem, mesh: Mesh | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """The method for a problem, its batches split over the mesh's devices."""


def initial_info(params: PyTree, damping: float = 0.0) -> Info:
    """The info before any update, in the dtypes that updates will give it."""
    scalar = partial(jnp.full, (), dtype=optax.tree.dtype(params, "highest"))
    return Info(
        loss=scalar(0),
        damping=scalar(damping),
        rho=scalar(jnp.nan),
        cg_steps=jnp.int32(0),
        cg_residual=scalar(0),
        step_norm=scalar(0),
        accepted=jnp.bool(True),
        indefinite=jnp.bool(False),
    )


def transformation(
    init: Callable[..., Any], step: Callable, mesh: Mesh | None
) -> optax.GradientTransformationExtraArgs:
    """An optax transformation from step(gradient | None, state, params, batch)."""
    step = data_parallel(step, mesh)

    def update(updates, state, params=None, *, batch=None, **extra_args):
        """Extra arguments are for the other members of an `optax.chain`."""
        del extra_args
        if params is None or batch is None:
            raise UsageError(
                "this optimiser reads the params and the batch: call "
                "optimizer.update(None, state, params, batch=batch)"
            )
        return step(updates, state, params, batch)

    return optax.GradientTransformationExtraArgs(init, update)


def check_positive(name: str, value: float, *, or_zero: bool = False) -> None:
    """Raise UsageError unless value is finite and > 0 (≥ 0 with or_zero)."""
    if not (math.isfinite(value) and (value > 0 or (or_zero and value == 0))):
        bound = "0 or more" if or_zero else "more than 0"
        raise UsageError(f"{name} is {value}: use a number that is {bound}")
