"""What every linear solver returns."""

from typing import NamedTuple

from jax import Array

from hfdist.pytree import PyTree


class Solution(NamedTuple):
    """An approximate solution of A x = b, A symmetric and given by its products."""

    x: PyTree
    residual: PyTree  # b - A x, like x
    relative_residual: Array  # (), ‖b - A x‖ / ‖b‖; 0 for b = 0
    steps: Array  # () int32, CG steps taken; 0 for a direct solve
    indefinite: Array  # () bool, whether A was seen not to be positive definite
