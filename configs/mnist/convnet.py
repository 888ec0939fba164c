"""A small convolutional network on MNIST by Hessian-free Gauss-Newton: 9,098 params.

    hfdist train configs/mnist/convnet.py

Two cores of an AMD EPYC that other jobs shared, seeds 0 to 2: 30 to 46 s of training;
training loss of the last epoch 0.075 to 0.080, test loss 0.074 to 0.081, test accuracy
0.974 to 0.977.
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
