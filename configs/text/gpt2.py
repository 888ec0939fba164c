"""GPT-2 of 124 million params on files of tokens, by Hessian-free Gauss-Newton.

    hfdist train configs/text/gpt2.py --data.dir FOLDER

FOLDER has train.bin and val.bin, as nanoGPT's data/openwebtext/prepare.py writes them:
GPT-2's tokens, two bytes each. The network is GPT-2's smallest, without biases: 12
blocks of 12 heads and width 768, context 1,024, its 50,257 tokens padded to 50,304.
Batches are nanoGPT's, 480 windows, 12 at a time.

Not trained. Compiled for one H100 on a machine without a GPU it takes 20.8 GB, of which
3.6 GB are the params and the method's state: 6.3 numbers a param, 5.3 of them
Kronecker factors. A batch of 16 windows at once takes 29.0 GB, and 62.8 GB without
remat.
"""

from pathlib import Path

from hfdist import CG, HessianFree, Probes
from hfdist.models.transformer import Transformer
from hfdist.runs.config import Config
from hfdist.tasks.tokens import Tokens

config = Config(
    method=HessianFree(
        damping=0.01,
        preconditioner="kronecker",
        # The side of 50,304 tokens keeps a diagonal: it is above largest_side.
        probes=Probes(every=8, refresh=80, largest_side=4096),
        step_rule="two_term",
        learning_rate=1.0,
        cg=CG(max_steps=2),
    ),
    model=Transformer(layers=12, heads=12, width=768, remat=True),
    data=Tokens(dir=Path("data/openwebtext"), context=1024, vocabulary=50_304),
    batch_size=480,
    micro_batch_size=12,
    epochs=1,
    evaluation_batch_size=16,
)
