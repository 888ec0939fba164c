"""Reconstruction of the images of IDX files, by an autoencoder."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from hfdist.tasks.idx import IDX, Loss


@dataclass(frozen=True, kw_only=True)
class Reconstruction(IDX):
    """Images that are their own targets; the labels are read and left aside."""

    loss: Loss = "sigmoid_cross_entropy"
    """Per-example loss of the outputs, summed over the pixels."""

    def outputs(self):
        """One for each pixel."""
        return self.pixels()

    def prepare(self, batch, dtype):
        """Pixels from bytes to [0, 1], as inputs and targets."""
        inputs = batch["inputs"].astype(dtype) / 255
        return {"inputs": inputs, "targets": inputs, "weights": batch["weights"]}

    def figures(self, outputs, batch):
        """The squared error of the pixels, summed over an image's."""
        shown = outputs if self.loss == "squared_error" else jax.nn.sigmoid(outputs)
        return {"squared_error": jnp.sum(jnp.square(shown - batch["targets"]), -1)}
