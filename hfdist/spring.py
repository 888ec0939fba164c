"""Momentum for steps that fit their batch: kept where the batch says nothing.

    d = argmin ½ ⟨d, C d⟩ - ⟨b, d⟩ + ½ λ ‖d - p‖²,   p = β s₋,   s₋ the step before,

so that (C + λI) d = b + λ p. As λ → 0 the part of p in the range of C is forgotten, and
that in its null space stays as it is (SPRING: Goldshlager, Abrahamsen & Lin 2024, arXiv
2401.10190, where C = J̃ᵀ J̃ of few examples).
"""

from collections.abc import Callable

from jax import Array
from optax import tree

from hfdist.pytree import PyTree
from hfdist.solvers.solution import Solution
from hfdist.solvers.system import System


def solved_near(
    p: PyTree,
    solve: Callable[[System, Array], Solution],
    system: System,
    damping: Array,
) -> Solution:
    """The solution d, with its residual b - (C + λI) d in the system given."""
    pull = tree.scale(damping, p)
    solution = solve(system._replace(b=tree.add(system.b, pull)), damping)
    return solution._replace(residual=tree.sub(solution.residual, pull))
