"""A curve fit whose least squares are known: a spectrum of overlapping peaks.

    z(x) = Σ_k h_k exp(-((x - c_k) / w_k)²),   y = z* + e,   J*ᵀ e = 0,

so that the params of z* are a minimum of Σ (y - z)²: the noise e has nothing in it that
the params could follow to first order, and is all of the residual there. K: peaks, N =
3 K params, B: points.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import nnx

from hfdist import Problem, with_jacobian
from hfdist.checks import Count, Positive
from hfdist.losses import squared_error
from hfdist.models.model import Model, functional
from hfdist.tasks.examples import Arrays
from hfdist.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class Peaks(Model):
    """K peaks at equal distances 1 that are alike, to begin with."""

    count: Count = 60
    """K."""

    def build(self, inputs, outputs, seed):
        del inputs, outputs, seed
        return _Sum(self.count)


class _Sum(nnx.Module):
    def __init__(self, count: int):
        self.heights = nnx.Param(jnp.ones(count))
        self.centres = nnx.Param(jnp.arange(count) + 0.5)
        self.widths = nnx.Param(jnp.ones(count))

    def __call__(self, x_B1):
        s_BK = (x_B1 - self.centres) / self.widths
        return jnp.exp(-(s_BK**2)) @ self.heights[:, None]


@dataclass(frozen=True, kw_only=True)
class Spectrum(Task):
    """y at points along the axis; evaluations report ‖z - z*‖ / ‖z*‖ at the same."""

    peaks: Count = 60
    """K."""
    points: Count = 1200
    """B."""
    noise: Positive = 0.001
    """The standard deviation of what e is the rest of."""
    jacobian: bool = True
    """Write the Jacobian of all points down, once a step."""

    def examples(self, split):
        x_B1 = np.linspace(0, self.peaks, self.points)[:, None]
        z_B, j_BN = self._known(x_B1)
        noise_B = self.noise * np.random.default_rng(1).normal(size=len(z_B))
        q_BN, _ = np.linalg.qr(j_BN)
        e_B = noise_B - q_BN @ (q_BN.T @ noise_B)
        y_B = z_B + e_B if split == "train" else z_B
        return Arrays({"inputs": x_B1, "targets": y_B[:, None]})

    def truth(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """h, c and w of z*, (K,) each."""
        rng = np.random.default_rng(0)
        h_K, shifts_K, w_K = rng.uniform(
            [[0.5], [-0.2], [0.5]], [[1.5], [0.2], [0.8]], (3, self.peaks)
        )
        return h_K, np.arange(self.peaks) + 0.5 + shifts_K, w_K

    def _known(self, x_B1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """z* (B,) and its Jacobian (B, N)."""
        h_K, c_K, w_K = self.truth()
        s_BK = (x_B1 - c_K) / w_K
        peaks_BK = np.exp(-(s_BK**2))
        slopes_BK = 2 * h_K * peaks_BK * s_BK / w_K
        return peaks_BK @ h_K, np.hstack([peaks_BK, slopes_BK, slopes_BK * s_BK])

    def problem(self, model, seed):
        net, params = functional(model.build(1, 1, seed))
        predict = with_jacobian(net) if self.jacobian else net
        return Problem(predict, squared_error), params

    def figures(self, outputs, batch):
        """The squares of z - y and of y."""
        zeros = jnp.zeros_like(outputs)
        return {
            "error": squared_error(outputs, batch),
            "whole": squared_error(zeros, batch),
        }

    def report(self, means):
        return {"relative_error": float(np.sqrt(means["error"] / means["whole"]))}
