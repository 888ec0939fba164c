"""Hessian-free Newton (λ = 32, α = 0.5).

hfdist train configs/paper/hf_newton.py
"""

from hfdist import HessianFree
from hfdist.config import Config

config = Config(
    method=HessianFree(curvature="hessian", damping=32.0, learning_rate=0.5)
)
