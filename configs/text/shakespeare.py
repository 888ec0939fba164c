"""A character transformer on Shakespeare's plays, by Hessian-free Gauss-Newton.

hfdist train configs/text/shakespeare.py
"""

from hfdist import CG, HessianFree
from hfdist.models.transformer import Transformer
from hfdist.runs.config import Config
from hfdist.tasks.text import Text

config = Config(
    method=HessianFree(
        curvature="gauss_newton",
        damping=0.3,
        learning_rate=1.0,
        warm_start=0.95,
        cg=CG(max_steps=3),
    ),
    model=Transformer(layers=4, heads=4, width=128),
    data=Text(context=64),
    batch_size=12,
    max_steps=1100,
    epochs=1,
    steps_per_dispatch=10,
    evaluation_batch_size=250,
)
