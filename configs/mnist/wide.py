"""x"""

from hfdist import HessianFree
from hfdist.models.mlp import MLP
from hfdist.runs.config import Config

config = Config(
    method=HessianFree(damping=1.0, learning_rate=0.5),
    model=MLP(hidden=(128,)),
    batch_size=64,
    epochs=7,
)
