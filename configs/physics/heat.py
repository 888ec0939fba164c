"""A physics-informed net for the heat equation: exact Gauss-Newton, 257 params.

    hfdist train configs/physics/heat.py

Two cores of an AMD EPYC at a load of 10, seed 0: relative error 2.5e-4, 7.0e-5 and
4.3e-6 after 50, 100 and all 500 steps; 19, 43 and 215 s of training, for which the run
had a fifth of the machine.
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
    epochs=500,
    evaluation_epochs=50,
)
