"""Hessian-free Gauss-Newton, the paper's best method (λ = 4, α = 0.5).

    hfdist train configs/paper/hf_gauss_newton.py

Two cores of an AMD EPYC, seeds 0 to 2: 1.6 s of training; training loss of the last
epoch 0.235 to 0.251, test accuracy 0.926 to 0.928. Paper: 246 s on a V100, 0.2049 and
0.9239.
"""

from hfdist import HessianFree
from hfdist.runs.config import Config

config = Config(
    method=HessianFree(curvature="gauss_newton", damping=4.0, learning_rate=0.5)
)
