"""The deep autoencoder of the Hessian-free literature: 2,837,314 params.

    hfdist train configs/mnist/autoencoder.py

Two cores of an AMD EPYC that other jobs shared, seed 0: squared error (summed over an
image's pixels) 12.1, 9.1 and 8.1 on the test images after 60, 120 and 180 steps: 142,
308 and 527 s of training, about half of it when the machine is quiet. From λ = 1 the
first steps saturate the units and the error stays at 50. Published, after many hours:
0.69 on the training images by Hessian-free, no weight decay (Sutskever et al. 2013).
"""

from hfdist import CG, HessianFree
from hfdist.models.autoencoder import Autoencoder
from hfdist.runs.config import Config
from hfdist.tasks.reconstruction import Reconstruction

config = Config(
    method=HessianFree(
        damping=45.0,  # Martens' λ₀, from which ρ starts at 0.6
        damping_rule="levenberg_marquardt",
        # Measured on the batch that made the step ρ stays at 1: below this λ each step
        # would fit its batch and no other.
        damping_bounds=(0.1, 1e10),
        learning_rate=1.0,
        warm_start=0.95,
        cg=CG(max_steps=20),
    ),
    model=Autoencoder(),
    data=Reconstruction(),
    batch_size=1000,
    epochs=3,
    steps_per_dispatch=5,
)
