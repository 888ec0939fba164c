"""The heat equation on a rod, in space and time at once."""

from dataclasses import dataclass

import numpy as np

from hfdist.checks import Positive
from hfdist.tasks.physics import SPACE, TIME, Evolution, along


@dataclass(frozen=True, kw_only=True)
class Heat(Evolution):
    """u_t = κ u_xx for 0 ≤ t ≤ 1 and 0 ≤ x ≤ 1, x = (t, x),

    u(0, x) = sin πx,   u(t, 0) = u(t, 1) = 0,   u* = exp(-κπ²t) sin πx
    """

    conductivity: Positive = 0.25
    """κ."""

    @property
    def box(self):
        return np.array([[0.0, 0.0], [1.0, 1.0]])

    def operator(self, u, x_BD):
        curvature = along(u, x_BD, SPACE).curvature
        return along(u, x_BD, TIME).slope - self.conductivity * curvature

    def solution(self, x_BD):
        t, x = x_BD.T
        return np.exp(-self.conductivity * np.pi**2 * t) * np.sin(np.pi * x)
