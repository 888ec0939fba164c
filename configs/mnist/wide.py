"""784-128-10 on MNIST by Hessian-free Gauss-Newton: 101,770 params.

    hfdist train configs/mnist/wide.py

RESULT
"""

from hfdist import HessianFree
from hfdist.models.mlp import MLP
from hfdist.runs.config import Config

config = Config(
    method=HessianFree(damping=1.0, learning_rate=0.5), model=MLP(hidden=(128,))
)
