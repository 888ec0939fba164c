"""x"""

from hfdist import HessianFree
from hfdist.models.autoencoder import Autoencoder
from hfdist.runs.config import Config
from hfdist.tasks.reconstruction import Reconstruction

config = Config(
    method=HessianFree(
        damping=1.0, damping_rule="levenberg_marquardt", learning_rate=1.0
    ),
    model=Autoencoder(),
    data=Reconstruction(),
    batch_size=1000,
    epochs=2,
)
