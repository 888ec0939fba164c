"""Burgers' equation, whose wave steepens until viscosity holds it."""

from dataclasses import dataclass

import numpy as np

from hfdist.checks import Count, Positive
from hfdist.tasks.physics import SPACE, TIME, Evolution, along

NODES = 400  # of the quadrature: 13 digits for a viscosity of 0.01 and more


@dataclass(frozen=True, kw_only=True)
class Burgers(Evolution):
    """u_t + u u_x = ν u_xx for 0 ≤ t ≤ 1 and -1 ≤ x ≤ 1, x = (t, x),

        u(0, x) = -sin πx,   u(t, -1) = u(t, 1) = 0

    By the transform of Cole (1951) and Hopf (1950) u* is a ratio of integrals over
    η = 2 √(νt) z, by the trapezoidal rule (Basdevant et al. 1986):

        u* = -∫ sin π(x - η) e(z) dz / ∫ e(z) dz,
        log e = -cos π(x - η) / 2πν - z²
    """

    interior: Count = 2000
    """Points in the interior."""
    boundary: Count = 300
    """Points on the boundary."""
    viscosity: Positive = 0.03
    """ν."""

    @property
    def box(self):
        return np.array([[0.0, -1.0], [1.0, 1.0]])

    def operator(self, u, x_BD):
        in_space = along(u, x_BD, SPACE)
        moved = along(u, x_BD, TIME).slope + in_space.value * in_space.slope
        return moved - self.viscosity * in_space.curvature

    def solution(self, x_BD):
        nu = self.viscosity
        # Beyond them e is less than rounding of what it is where it is greatest.
        last = np.sqrt(1 / (np.pi * nu) + 40)
        z = np.linspace(-last, last, NODES)
        return np.concatenate(
            [
                _ratio(nu, part, z)
                for part in np.array_split(x_BD, 1 + len(x_BD) // 1000)
            ]
        )


def _ratio(nu: float, x_BD: np.ndarray, z: np.ndarray) -> np.ndarray:
    t, x = x_BD.T[:, :, None]
    angle = np.pi * (x - 2 * np.sqrt(nu * t) * z)
    log = -np.cos(angle) / (2 * np.pi * nu) - z**2
    weight = np.exp(log - log.max(1, keepdims=True))
    return -np.sum(np.sin(angle) * weight, 1) / np.sum(weight, 1)
