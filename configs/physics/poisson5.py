"""A physics-informed net for Poisson's equation in five dimensions, 10,065 params.

    hfdist train configs/physics/poisson5.py

TODO
"""

from hfdist import CG, HessianFree
from hfdist.models.mlp import MLP
from hfdist.runs.config import Config
from hfdist.tasks.poisson_cube import PoissonCube

config = Config(
    method=HessianFree(
        curvature="gauss_newton",
        damping=1.0,
        damping_rule="nielsen",
        learning_rate=1.0,
        cg=CG(max_steps=200, rtol=1e-3),
        warm_start=0.95,
    ),
    model=MLP(hidden=(64, 64, 48, 48), activation="tanh"),
    data=PoissonCube(),
    dtype="float64",
    batch_size=3500,
    epochs=500,
    evaluation_epochs=10,
)
