"""Stochastic gradient descent, the paper's first-order baseline (α = 0.1).

hfdist train configs/paper/sgd.py
"""

from hfdist import SGD
from hfdist.config import Config

config = Config(method=SGD(learning_rate=0.1))
