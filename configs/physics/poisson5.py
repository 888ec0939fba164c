"""A physics-informed net for Poisson's equation in 5-D: exact solves, 10,065 params.

    hfdist train configs/physics/poisson5.py

One core of an AMD EPYC, seed 0: relative error 4.8e-4, 1.9e-4, 9.8e-5 and 9.1e-5 after
100, 500, 1,600 and 2,100 steps; 29, 148, 475 and 622 s of training, not taken to the
end. Every step has other points, 550 of 55,000, and solves in the span of their
outputs; the momentum keeps what they say nothing of. Set OPENBLAS_NUM_THREADS=1.
"""

from hfdist import Newton
from hfdist.models.mlp import MLP
from hfdist.runs.config import Config
from hfdist.tasks.poisson_cube import PoissonCube

config = Config(
    method=Newton(
        curvature="gauss_newton",
        damping=0.1,
        damping_rule="nielsen",
        damping_bounds=(1e-4, 1e10),
        learning_rate=0.1,
        momentum=0.9,
    ),
    model=MLP(hidden=(64, 64, 48, 48), activation="tanh"),
    data=PoissonCube(interior=450, boundary=100, draws=100),
    dtype="float64",
    batch_size=550,
    epochs=40,
)
