"""Stochastic gradient descent, the paper's first-order baseline (α = 0.1).

    hfdist train configs/paper/sgd.py

Two cores of an AMD EPYC, seeds 0 to 2: 0.7 s of training; training loss of the last
epoch 0.237 to 0.253, test accuracy 0.926 to 0.932. Paper: 222 s on a V100, 0.2121 and
0.9138.
"""

from hfdist import SGD
from hfdist.runs.config import Config

config = Config(method=SGD(learning_rate=0.1))
