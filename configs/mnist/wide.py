"""784-128-10 on MNIST by Hessian-free Gauss-Newton: 101,770 params.

    hfdist train configs/mnist/wide.py

Two cores of an AMD EPYC, seeds 0 to 2: 2.6 to 3.3 s of training; training loss of the
last epoch 0.042 to 0.045, test loss 0.071 to 0.079, test accuracy 0.975 to 0.978.
"""

from hfdist import HessianFree
from hfdist.models.mlp import MLP
from hfdist.runs.config import Config

config = Config(
    method=HessianFree(damping=1.0, learning_rate=0.5), model=MLP(hidden=(128,))
)
