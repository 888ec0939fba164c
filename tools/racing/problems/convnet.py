"""The small convolutional network of configs/mnist/convnet.py."""

from racing.contest import Contest, against_adam


def convnet() -> Contest:
    """Training loss after 20 s."""
    return against_adam("mnist/convnet.py", seconds=20.0)
