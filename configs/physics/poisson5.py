"""A physics-informed net for Poisson's equation in 5-D: exact solves, 10,065 params.

    hfdist train configs/physics/poisson5.py

TODO
"""

from hfdist import Newton
from hfdist.models.mlp import MLP
from hfdist.runs.config import Config
from hfdist.tasks.poisson_cube import PoissonCube

config = Config(
    method=Newton(
        curvature="gauss_newton",
        damping=1.0,
        damping_rule="nielsen",
        learning_rate=1.0,
    ),
    model=MLP(hidden=(64, 64, 48, 48), activation="tanh"),
    data=PoissonCube(),
    dtype="float64",
    batch_size=3500,
    epochs=100,
    evaluation_epochs=5,
)
