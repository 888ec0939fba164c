"""A physics-informed net for Poisson's equation in 5-D: exact solves, 10,065 params.

    hfdist train configs/physics/poisson5.py

One core of an AMD EPYC, seed 0: relative error 2.0e-3, 1.1e-3, 6.5e-4 and 3.6e-4 after
35, 45, 60 and 90 steps, 222, 283, 374 and 557 s of training; not taken to the end. A
step solves in the span of the 3,500 outputs. Set OPENBLAS_NUM_THREADS=1.
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
