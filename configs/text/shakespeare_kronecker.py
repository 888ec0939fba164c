"""A character transformer on Shakespeare's plays, by two-term steps.

    OPENBLAS_NUM_THREADS=1 hfdist train configs/text/shakespeare_kronecker.py

FIGURES
"""

from hfdist import CG, HessianFree, Probes
from hfdist.models.transformer import Transformer
from hfdist.runs.config import Config
from hfdist.tasks.text import Text

config = Config(
    method=HessianFree(
        damping=0.03,
        damping_rule="next_batch",
        preconditioner="kronecker",
        probes=Probes(every=4, refresh=40),
        step_rule="two_term",
        learning_rate=1.0,
        cg=CG(max_steps=0),
    ),
    model=Transformer(layers=4, heads=4, width=128),
    data=Text(context=64),
    batch_size=12,
    max_steps=2_000,
    epochs=2,
    steps_per_dispatch=10,
    evaluation_batch_size=250,
)
