"""784-128-10 on MNIST by one CG step a step with a Kronecker preconditioner.

    hfdist train configs/mnist/wide_kronecker.py

Two CPU cores, seed 0: 4.4 s; training loss of the last epoch 0.0082, test accuracy
0.9805. wide.py: 2.6 s, 0.0419 and 0.9775.
"""

from hfdist import CG, HessianFree, Probes
from hfdist.models.mlp import MLP
from hfdist.runs.config import Config

config = Config(
    method=HessianFree(
        damping=0.03,
        preconditioner="kronecker",
        probes=Probes(every=8, refresh=40),
        step_rule="two_term",
        learning_rate=1.0,
        cg=CG(max_steps=1),
    ),
    model=MLP(hidden=(128,)),
    batch_size=512,
)
