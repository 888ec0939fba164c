"""What every linear solver is given."""

from collections.abc import Callable
from typing import NamedTuple

from jax import Array

from hfdist.pytree import PyTree, inner


class System(NamedTuple):
    """A x = b, A symmetric and given by its products."""

    product: Callable[[PyTree], PyTree]  # v -> A v, both like b
    b: PyTree
    start: PyTree | None = None  # where to start from, like b; None: from 0
    # ⟨u, v⟩, in which A is self-adjoint and all lengths are measured.
    inner: Callable[[PyTree, PyTree], Array] = inner
    # v -> M⁻¹ v for a definite M ≈ A, for solvers that take one; None: M = I.
    precondition: Callable[[PyTree], PyTree] | None = None
