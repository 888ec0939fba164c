"""The contract of a linear solver."""

import abc
from collections.abc import Callable
from typing import ClassVar

from jax import Array

from hfdist.checks import Settings
from hfdist.pytree import PyTree
from hfdist.solvers.solution import Solution
from hfdist.solvers.system import System


class Solver(Settings, abc.ABC):
    """Settings of a solver of A x = b, a frozen dataclass."""

    by_inner_products: ClassVar[bool]
    """Whether A need be self-adjoint in `System.inner` alone, not a symmetric matrix:
    the reduced solve is then in coordinates that cost no factorisation."""

    @abc.abstractmethod
    def solve(self, system: System) -> Solution:
        """x with A x ≈ b."""

    def written(self, matrix: Callable[[int], Array], like: PyTree) -> Array | None:
        """A symmetric matrix, by a solver that writes it down; None: it does not.

        matrix: so many columns at a time, of vectors like these. It serves every A that
        differs from it by a multiple of I.
        """
        del matrix, like
        return None

    @abc.abstractmethod
    def held(self, unknowns: int, examples: int) -> int:
        """Numbers that a solve holds, in the span of so many inputs; 0: of all params.

        The solve is never reduced for more memory than it takes without.
        """
