"""A physics-informed net for the heat equation: exact Gauss-Newton, 257 params.

    hfdist train configs/physics/heat.py

TODO
"""

from hfdist import Dense, Newton
from hfdist.models.mlp import MLP
from hfdist.runs.config import Config
from hfdist.tasks.heat import Heat

config = Config(
    method=Newton(
        curvature="gauss_newton",
        damping=1.0,
        damping_rule="nielsen",
        learning_rate=1.0,
        dense=Dense(block=64),
    ),
    model=MLP(hidden=(64,), activation="tanh"),
    data=Heat(),
    dtype="float64",
    batch_size=1020,
    epochs=2000,
    evaluation_epochs=50,
)
