"""nanoGPT's character transformer of GPU size, by Hessian-free Gauss-Newton.

    hfdist train configs/text/shakespeare_gpu.py

6 blocks of 6 heads and width 384, context 256, batches of 64, without biases and
dropout: 10.7 million params. Not trained. Compiled for one H100 on a machine without a
GPU it takes 10.8 GB. The network of shakespeare.py at this batch has after 60 steps of
this method a validation loss of 2.453, and of 2.556 by shakespeare.py's (one seed).
"""

from hfdist import CG, HessianFree, Probes
from hfdist.models.transformer import Transformer
from hfdist.runs.config import Config
from hfdist.tasks.text import Text

config = Config(
    method=HessianFree(
        damping=0.01,
        preconditioner="kronecker",
        probes=Probes(every=8, refresh=80),
        step_rule="two_term",
        learning_rate=1.0,
        cg=CG(max_steps=2),
    ),
    model=Transformer(layers=6, heads=6, width=384),
    data=Text(context=256),
    batch_size=64,
    max_steps=1000,
    epochs=100,
    steps_per_dispatch=10,
    evaluation_batch_size=64,
)
