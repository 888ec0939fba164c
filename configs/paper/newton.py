"""Newton's method, undamped (α = 0.5): diverges, as the paper's did.

hfdist train configs/paper/newton.py --max-steps 5
"""

from hfdist import Newton
from hfdist.config import Config

config = Config(
    method=Newton(damping=0.0, learning_rate=0.5),
    steps_per_dispatch=1,
)
