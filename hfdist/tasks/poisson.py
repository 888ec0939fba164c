"""Poisson's equation in the unit square, at the points of a grid."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from hfdist.checks import Count, Whole
from hfdist.tasks.physics import Physics, laplacian


@dataclass(frozen=True, kw_only=True)
class Poisson(Physics):
    """-Δu = f in the unit square,   u*(x) = sin πx₁ sin πx₂,   f = 2π² u*

    The points are a regular grid, which needs no seed: as many drawn at random end
    with an error up to twice as large. The error is measured over a denser grid.
    """

    side: Count = 30
    """Points along a side: side² in the interior and 4 side on the boundary."""
    test_side: Annotated[int, Whole(2)] = 101
    """Points along a side of the grid that the error is measured on."""

    @property
    def box(self):
        return np.array([[0.0, 0.0], [1.0, 1.0]])

    def operator(self, u, x_BD):
        return -laplacian(u, x_BD)

    def source(self, x_BD):
        return 2 * np.pi**2 * self.solution(x_BD)

    def solution(self, x_BD):
        return np.prod(np.sin(np.pi * x_BD), -1)

    def inside(self):
        """The centres of side² squares."""
        return _grid((np.arange(self.side) + 0.5) / self.side)

    def around(self):
        """Once around the boundary, from corner to corner in steps of 1 / side."""
        t = np.arange(self.side) / self.side
        low, high = np.zeros(self.side), np.ones(self.side)
        edges = (t, low), (high, t), (1 - t, high), (low, 1 - t)
        return np.concatenate([np.stack(edge, -1) for edge in edges])

    def tested(self):
        return _grid(np.linspace(0, 1, self.test_side))


def _grid(along: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(along, along), -1).reshape(-1, 2)
