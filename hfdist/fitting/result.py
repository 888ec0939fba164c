"""What a fit found: the params, how sure they are, and how well the model fits."""

from typing import Annotated, NamedTuple

import jax
import numpy as np
from optax import tree
from scipy.special import ndtri, stdtrit

from hfdist.checks import Real, fitted
from hfdist.fitting.descent import Ending
from hfdist.pytree import PyTree

Level = Annotated[float, Real(0, above=True, below=1)]


class Fit(NamedTuple):
    """The least of S(p) = Σ ((yᵢ - model(xᵢ, p)) / σᵢ)² + Σ μ p², in float64.

    B: values in y, N: params. The order of a matrix (N, N) is that of
    `jax.flatten_util.ravel_pytree`.
    """

    params: PyTree  # like p0
    covariance: np.ndarray  # (N, N)
    standard_errors: PyTree  # like p0, the roots of its diagonal
    squares: float  # Σ ((y - model) / σ)², χ² if σ is known
    freedom: int  # B - N
    r_squared: float  # 1 - squares / those of the best constant
    steps: int  # tried, each one pass over the data
    ending: Ending
    absolute_sigma: bool

    @property
    def converged(self) -> bool:
        """Whether the minimum was reached."""
        return self.ending == Ending.CONVERGED

    @property
    def reduced_chi_squared(self) -> float:
        """squares / (B - N); NaN where B = N."""
        return self.squares / self.freedom if self.freedom else float("nan")

    def confidence_intervals(self, level: float = 0.95) -> tuple[PyTree, PyTree]:
        """Lower and upper ends p ∓ t s, like p0, that hold p with this probability.

        s are the standard errors, t is the quantile (1 + level) / 2 of Student's
        distribution with B - N degrees of freedom, or of the normal one if σ is known.
        Raises UsageError for a level that is not between 0 and 1.
        """
        upper = (1 + fitted("level", level, Level)) / 2
        t = ndtri(upper) if self.absolute_sigma else stdtrit(self.freedom, upper)
        half = jax.tree.map(lambda s: t * s, self.standard_errors)
        return tree.sub(self.params, half), tree.add(self.params, half)
