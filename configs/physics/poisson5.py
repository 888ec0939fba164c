"""A physics-informed net for Poisson's equation in 5-D: exact solves, 10,065 params.

    hfdist train configs/physics/poisson5.py

Two cores of an AMD EPYC at a load of 10, seed 0: relative error 1.3e-2, 2.6e-3 and
1.1e-3 after 14, 31 and 44 steps, 5, 12 and 19 minutes of training, while it fell by 6 %
a step; not taken to the end. A step solves in the span of the 3,500 outputs.
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
