"""Hessian-free Gauss-Newton, the paper's best method (λ = 4, α = 0.5).

hfdist train configs/paper/hf_gauss_newton.py
"""

from hfdist import HessianFree
from hfdist.config import Config

config = Config(
    method=HessianFree(curvature="gauss_newton", damping=4.0, learning_rate=0.5)
)
