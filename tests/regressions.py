"""The nonlinear regressions of NIST's Statistical Reference Datasets.

Each file of certified/ is one as it was published, a work of the US government in the
public domain: two starts, the first the farther; certified values, of which the 11
digits were computed in quadruple precision; and the data. Here are the models, written
as in the files, for params b (N,), and what the digits of a result are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

FOLDER = Path(__file__).parent / "certified"


def bennett5(b, x):
    return b[0] * (b[1] + x) ** (-1 / b[2])


def box_bod(b, x):
    return b[0] * (1 - jnp.exp(-b[1] * x))


def chwirut(b, x):
    return jnp.exp(-b[0] * x) / (b[1] + b[2] * x)


def dan_wood(b, x):
    return b[0] * x ** b[1]


def enso(b, x):
    def wave(cosine, sine, period):
        angle = 2 * jnp.pi * x / period
        return cosine * jnp.cos(angle) + sine * jnp.sin(angle)

    waves = wave(b[1], b[2], 12) + wave(b[4], b[5], b[3]) + wave(b[7], b[8], b[6])
    return b[0] + waves


def eckerle4(b, x):
    return b[0] / b[1] * jnp.exp(-(((x - b[2]) / b[1]) ** 2) / 2)


def gauss(b, x):
    def peak(height, centre, width):
        return height * jnp.exp(-(((x - centre) / width) ** 2))

    return b[0] * jnp.exp(-b[1] * x) + peak(*b[2:5]) + peak(*b[5:8])


def hahn1(b, x):
    cubic = b[0] + b[1] * x + b[2] * x**2 + b[3] * x**3
    return cubic / (1 + b[4] * x + b[5] * x**2 + b[6] * x**3)


def kirby2(b, x):
    return (b[0] + b[1] * x + b[2] * x**2) / (1 + b[3] * x + b[4] * x**2)


def lanczos(b, x):
    first, second = b[0] * jnp.exp(-b[1] * x), b[2] * jnp.exp(-b[3] * x)
    return first + second + b[4] * jnp.exp(-b[5] * x)


def mgh09(b, x):
    return b[0] * (x**2 + b[1] * x) / (x**2 + b[2] * x + b[3])


def mgh10(b, x):
    return b[0] * jnp.exp(b[1] / (x + b[2]))


def mgh17(b, x):
    return b[0] + b[1] * jnp.exp(-b[3] * x) + b[2] * jnp.exp(-b[4] * x)


def misra1b(b, x):
    return b[0] * (1 - (1 + b[1] * x / 2) ** -2)


def misra1c(b, x):
    return b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5)


def misra1d(b, x):
    return b[0] * b[1] * x / (1 + b[1] * x)


def nelson(b, x):
    weeks, celsius = x.T
    return b[0] - b[1] * weeks * jnp.exp(-b[2] * celsius)


def rat42(b, x):
    return b[0] / (1 + jnp.exp(b[1] - b[2] * x))


def rat43(b, x):
    return b[0] / (1 + jnp.exp(b[1] - b[2] * x)) ** (1 / b[3])


def roszman1(b, x):
    return b[0] - b[1] * x - jnp.arctan(b[2] / (x - b[3])) / jnp.pi


MODELS: dict[str, Callable[[Array, Array], Array]] = {
    "Bennett5": bennett5,
    "BoxBOD": box_bod,
    "Chwirut1": chwirut,
    "Chwirut2": chwirut,
    "DanWood": dan_wood,
    "ENSO": enso,
    "Eckerle4": eckerle4,
    "Gauss1": gauss,
    "Gauss2": gauss,
    "Gauss3": gauss,
    "Hahn1": hahn1,
    "Kirby2": kirby2,
    "Lanczos1": lanczos,
    "Lanczos2": lanczos,
    "Lanczos3": lanczos,
    "MGH09": mgh09,
    "MGH10": mgh10,
    "MGH17": mgh17,
    "Misra1a": box_bod,
    "Misra1b": misra1b,
    "Misra1c": misra1c,
    "Misra1d": misra1d,
    "Nelson": nelson,
    "Rat42": rat42,
    "Rat43": rat43,
    "Roszman1": roszman1,
    "Thurber": hahn1,
}


@dataclass(frozen=True)
class Regression:
    """A problem with its certified solution."""

    model: Callable[[Array, Array], Array]  # (b (N,), x (B,) or (B, 2)) -> y (B,)
    starts: np.ndarray  # (2, N), the farther first
    certified: np.ndarray  # (N,), b at the least Σ (y - model)²
    deviations: np.ndarray  # (N,), its standard errors, certified too
    squares: float  # that least sum
    batch: dict[str, Any]  # inputs x, targets y (B, 1)

    def predict(self, params: Array, batch: dict[str, Any]) -> Array:
        return self.model(params, batch["inputs"])[:, None]

    def digits(self, params: Any) -> float:
        """Decimal digits of the worst parameter, -log₁₀ |b - c| / |c|, 11 at most."""
        with np.errstate(divide="ignore"):
            error_N = np.abs((np.asarray(params) - self.certified) / self.certified)
            digits = np.min(-np.log10(error_N))
        return float(min(digits, 11)) if np.isfinite(error_N).all() else -np.inf


def read(name: str) -> Regression:
    """The regression of a file: values stand after '=', data after the last 'Data:'."""
    text = (FOLDER / f"{name}.dat").read_text()
    head, data = text.rsplit("Data:", 1)
    rows = [line.split("=")[1].split() for line in head.splitlines() if _value(line)]
    values = np.array(rows, float)
    table = np.array([line.split() for line in data.splitlines()[1:] if line], float)
    y, x = table[:, 0], np.squeeze(table[:, 1:])
    squares = head.split("Residual Sum of Squares:")[1].split()[0]
    targets = np.log(y) if name == "Nelson" else y  # whose file says log[y] = …
    return Regression(
        model=MODELS[name],
        starts=values[:, :2].T,
        certified=values[:, 2],
        deviations=values[:, 3],
        squares=float(squares),
        batch={"inputs": jnp.asarray(x), "targets": jnp.asarray(targets)[:, None]},
    )


def _value(line: str) -> bool:
    """Whether a line is of the table of params: b1 = start, start, value, deviation."""
    name, equals, rest = line.strip().partition("=")
    return bool(equals) and name.strip()[1:].isdigit() and len(rest.split()) == 4
