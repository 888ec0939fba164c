"""What every linear solver returns."""

from enum import IntEnum
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from hfdist.pytree import PyTree
from hfdist.solvers.iterates import Iterates


class Reason(IntEnum):
    """Why a solve ended."""

    CONVERGED = 0
    """The residual is as small as was asked for, or A was factorised by Cholesky."""
    STEPS_USED_UP = 1
    """So many products as were allowed did not bring it there."""
    NEGATIVE_CURVATURE = 2
    """vᵀAv ≤ 0 for some v: A is not positive definite."""
    SINGULAR = 3
    """A has no inverse, or vᵀAv is no number."""
    NOT_FINITE = 4
    """b or the residual is not finite, which says nothing of A."""
    PROGRESS_SLOWED = 5
    """½ ⟨x, A x⟩ - ⟨b, x⟩ fell by too little over the last steps (`CG.progress`)."""


class Solution(NamedTuple):
    """An approximate solution of A x = b."""

    x: PyTree
    residual: PyTree | None  # b - A x, like x; None: A x was not computed
    relative_residual: Array  # (), ‖b - A x‖ / ‖b‖; 0 for b = 0, NaN for no residual
    steps: Array  # () int32, CG steps taken; 0 for a direct solve
    reason: Array  # () int32, a Reason
    iterates: Iterates | None = None  # before x, that were kept; None: none were

    @property
    def indefinite(self) -> Array:
        """() bool, whether A was seen not to be positive definite."""
        return not_positive(self.reason)


def relative(rr: Array, bb: Array) -> Array:
    """‖r‖ / ‖b‖ from the squares, 0 for b = 0."""
    return jnp.sqrt(rr / jnp.maximum(bb, jnp.finfo(bb.dtype).tiny))


def not_positive(reason: Array) -> Array:
    """Whether a solve ended because A is not positive definite."""
    return (reason == Reason.NEGATIVE_CURVATURE) | (reason == Reason.SINGULAR)
