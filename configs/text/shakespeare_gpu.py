"""nanoGPT's character transformer of GPU size, by Hessian-free Gauss-Newton.

    hfdist train configs/text/shakespeare_gpu.py

6 blocks of 6 heads and width 384, context 256, batches of 64, without biases and
dropout: 10.7 million params. Not trained: the method is shakespeare.py's, of a network
of 0.8 million. Compiled for one H100 on a machine without a GPU it takes 7.3 GB.
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
    model=Transformer(layers=6, heads=6, width=384),
    data=Text(context=256),
    batch_size=64,
    max_steps=1000,
    epochs=100,
    steps_per_dispatch=10,
    evaluation_batch_size=64,
)
