"""What a preconditioner may learn from at a step, and how it finds it held."""

from functools import partial

from hfdist.parallel import Collectives
from hfdist.preconditioner import Held, Samples
from hfdist.probes import probe
from hfdist.problem import Batch, Problem
from hfdist.pytree import PyTree
from hfdist.quadratics import quadratic


def samples_of(
    problem: Problem, params: PyTree, batch: Batch, devices: Collectives
) -> Samples:
    """Probes of G at params, and products with it, over the batch.

    G whatever the curvature of the solve is, as M has to be definite; so the products
    have a linearisation of their own, made at the steps that call for them.
    """
    vectors = devices.vectors

    def product(v):
        return quadratic(problem, params, batch, devices=devices).product(v)

    held = Held(
        inner=vectors.inner,
        expand=lambda vector: devices.whole(vectors.expand(vector, params)),
        part=lambda tree: vectors.part(devices.parts(tree)),
        gather=devices.gather,
        share=devices.share,
    )
    return Samples(partial(probe, problem, params, batch, devices), product, held)
