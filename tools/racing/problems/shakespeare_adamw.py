"""The character transformer of configs/text/shakespeare.py, against a tuned AdamW."""

import math
from dataclasses import replace
from functools import partial

from hfdist import Adam, HessianFree
from hfdist.runs.config import load
from racing.contest import CONFIGS, Contest, first_order, tuned_by, untuned

# nanoGPT's, with a rate that falls to 0 where 300 s end on two cores of an AMD EPYC.
ADAMW = partial(Adam, b2=0.99, weight_decay=0.1, warmup_steps=100, decay_steps=13_000)


def shakespeare_adamw() -> Contest:
    """Bits a character of the validation text in 300 s, and seconds to 1.88 nats."""
    config = replace(load(CONFIGS / "text/shakespeare.py"), method=HessianFree())
    size = config.batch_size
    return Contest(
        config=config,
        contestants=(
            untuned(config),
            tuned_by("text/shakespeare_kronecker.py"),
            first_order("AdamW", ADAMW, (1e-3, 3e-3), (size,)),
        ),
        quantity="bits_per_character",
        targets=(1.88 / math.log(2),),
        times=(60.0, 120.0, 180.0, 240.0, 300.0),
        seconds=300.0,
        grid_seconds=40.0,
        spacing=math.inf,
    )
