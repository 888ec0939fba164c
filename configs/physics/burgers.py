"""A physics-informed net for the Burgers' equation: exact Gauss-Newton, 1,185 params.

    hfdist train configs/physics/burgers.py

TODO
"""

from hfdist import Dense, Newton
from hfdist.models.mlp import MLP
from hfdist.runs.config import Config
from hfdist.tasks.burgers import Burgers

config = Config(
    method=Newton(
        curvature="gauss_newton",
        damping=1.0,
        damping_rule="nielsen",
        learning_rate=1.0,
        dense=Dense(block=128),
    ),
    model=MLP(hidden=(32, 32), activation="tanh"),
    data=Burgers(),
    dtype="float64",
    batch_size=2300,
    epochs=1000,
    evaluation_epochs=50,
)
