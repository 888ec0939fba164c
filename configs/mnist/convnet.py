"""A small convolutional network on MNIST by Hessian-free Gauss-Newton: 9,098 params.

    hfdist train configs/mnist/convnet.py

RESULT
"""

from hfdist import HessianFree
from hfdist.models.conv_net import ConvNet
from hfdist.runs.config import Config

config = Config(
    method=HessianFree(damping=1.0, learning_rate=0.5),
    model=ConvNet(),
    batch_size=256,
    epochs=5,
)
