"""Damped Newton (λ = 32, α = 0.5): the exact 7,960 x 7,960 solve at every step.

hfdist train configs/paper/damped_newton.py --max-steps 20
"""

from hfdist import Newton
from hfdist.config import Config

config = Config(
    method=Newton(damping=32.0, learning_rate=0.5),
    steps_per_dispatch=1,
)
