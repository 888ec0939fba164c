"""Poisson's equation in a cube of any dimension."""

from dataclasses import dataclass

import numpy as np

from hfdist.checks import Count
from hfdist.tasks.physics import Drawn, laplacian


@dataclass(frozen=True, kw_only=True)
class PoissonCube(Drawn):
    """-Δu = f in the unit cube,   u*(x) = Σ_d cos πx_d,   f = π² u*

    With 5 dimensions and as many points the problem of Dangel, Müller & Zeinhofer 2024
    (arXiv 2405.15603), section 4.
    """

    interior: Count = 3000
    """Points in the interior."""
    boundary: Count = 500
    """Points on the boundary."""
    axes: Count = 5
    """Dimensions of the cube."""

    @property
    def box(self):
        return np.stack([np.zeros(self.axes), np.ones(self.axes)])

    def operator(self, u, x_BD):
        return -laplacian(u, x_BD)

    def source(self, x_BD):
        return np.pi**2 * self.solution(x_BD)

    def solution(self, x_BD):
        return np.sum(np.cos(np.pi * x_BD), -1)
