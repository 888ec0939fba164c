"""What a run's devices hold, and the same as a checkpoint has it.

A checkpoint has vectors as the run had them that saved it: shared out, or whole. So a
run may be continued on any number of devices, however they share.
"""

from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from hfdist.methods.method import Method, State
from hfdist.parallel import Sharding, bring_together, described, replicate, share_out
from hfdist.pytree import PyTree
from hfdist.runs.config import Config

Carry = tuple[PyTree, State]


def holding(config: Config, mesh: Mesh | None) -> Sharding:
    """How the run's vectors are held: one device has them whole."""
    return "replicated" if mesh is None else config.sharding


def begin(config: Config, mesh: Mesh | None, params: PyTree) -> Carry:
    """The state before the first step, as the devices hold it."""
    carry = replicate((params, config.method.init(params)), mesh)
    return taken_over(config, mesh, carry, "replicated")


def taken_over(
    config: Config, mesh: Mesh | None, carry: Carry, saved: Sharding
) -> Carry:
    """What was saved with a sharding, as the devices hold it.

    Every process of the run calls it at the same time.
    """
    params, state = carry
    if saved == (held := holding(config, mesh)):
        return carry
    if saved == "vectors":
        together = partial(bring_together, like=params, mesh=mesh)
        state = config.method.on_vectors(together, state)
    return params, _shared(config.method, mesh, state) if held == "vectors" else state


def as_saved(
    config: Config, mesh: Mesh | None, params: PyTree, saved: Sharding
) -> Carry:
    """What was saved with a sharding, without its values, where the run takes it to."""
    method = config.method

    def start(params):
        state = method.init(params)
        return params, _shared(method, None, state) if saved == "vectors" else state

    whole = holding(config, mesh) != "vectors"
    return described(jax.eval_shape(start, params), mesh, whole)


def _shared(method: Method, mesh: Mesh | None, state: State) -> Any:
    return method.on_vectors(partial(share_out, mesh=mesh), state)
