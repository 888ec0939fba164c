"""A character transformer on Shakespeare's plays, by two-term steps.

    OPENBLAS_NUM_THREADS=1 hfdist train configs/text/shakespeare_kronecker.py

One core of an AMD EPYC, seed 0, in a race of `tools/bench.py`: validation loss 1.869,
2.696 bits a character, accuracy 0.449, after 1,984 steps, 183 s of training; 2.571 bits
after 3,328 steps, 301 s. shakespeare.py takes 203 s of two cores to 2.994, and AdamW
58 s of this one to 2.71. λ₀ is the one setting that matters: 1, as HessianFree() has
it, takes 300 s to 2.71. The variable keeps LAPACK's threads out of the way of XLA's.
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
