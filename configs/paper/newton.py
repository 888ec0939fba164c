"""Newton's method, undamped (α = 0.5): diverges, as the paper's did.

    hfdist train configs/paper/newton.py

The Hessian is singular, since some pixels are 0 in every example and some hidden units
in every example of a batch, and so there is no Newton step: Cholesky and LU both fail,
every update is rejected ("accepted": false, "step_norm": "nan"), and the run ends with
exit code 3 after 11 of them, in 0.4 s on two cores of an AMD EPYC. Paper: 21,257 s on a
V100, training loss 2.305, which is ln 10, the uniform prediction.
"""

from hfdist import Newton
from hfdist.runs.config import Config

config = Config(
    method=Newton(damping=0.0, learning_rate=0.5),
    steps_per_dispatch=1,
)
