"""A character transformer on Shakespeare's plays, by Hessian-free Gauss-Newton.

    hfdist train configs/text/shakespeare.py

The network and context are those of nanoGPT's CPU size, without biases: 0.8 million
params. Two cores of an AMD EPYC that other jobs shared, seed 0: validation loss 2.075,
2.99 bits a character, accuracy 0.396, after 203 s of training (0.8 of an epoch), 245 s
of processor time with compilation; 2.227 after 600 steps. AdamW on the same batches
(warm-up, cosine decay from 1e-3 over 2,000 steps) comes to 2.071 after 1,000 steps,
78 s of processor time, and to 1.917 after 2,000, 149 s; nanoGPT states 1.88 for 2,000.
Without a preconditioner, a Gauss-Newton step learns as much as one of AdamW and costs
three times as much.
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
