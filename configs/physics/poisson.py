"""A physics-informed net for Poisson's equation: exact Gauss-Newton, 257 params.

    hfdist train configs/physics/poisson.py

Two cores of an AMD EPYC that other jobs shared (a load of 10 to 20), XLA on one thread
(XLA_FLAGS=--xla_cpu_multi_thread_eigen=false), seeds 0 to 2: relative error below
3e-6 after 6 to 8 s of training, 3.3e-8 to 1.4e-7 after 60 s (1,757 to 2,868 steps),
1.2e-8 to 4.2e-8 after all 5,000 steps; 8 to 9 ms a step in quieter moments. Without the
Jacobian a step takes 700 ms.
"""

from hfdist import Dense, Newton
from hfdist.models.mlp import MLP
from hfdist.runs.config import Config
from hfdist.tasks.physics import Poisson

config = Config(
    method=Newton(
        curvature="gauss_newton",
        damping=1.0,
        damping_rule="nielsen",
        learning_rate=1.0,
        dense=Dense(block=64),
    ),
    model=MLP(hidden=(64,), activation="tanh"),
    data=Poisson(),
    dtype="float64",
    batch_size=1020,
    epochs=5000,
    evaluation_epochs=50,
)
