"""What a run's devices hold, and the same as a checkpoint has it.

A checkpoint has params and vectors as the run had them that saved it: shared out, or
whole. So a run may be continued on any number of devices, however they share.
"""

from typing import Any

import jax
from jax.sharding import Mesh

from hfdist.methods.method import Method, State
from hfdist.parallel import replicate
from hfdist.pytree import PyTree
from hfdist.runs.config import Config
from hfdist.sharing import Functions, Sharding, bring_together, described, share_out

Carry = tuple[PyTree, State]


def holding(config: Config, mesh: Mesh | None) -> Sharding:
    """What the run's devices share out: one device has all of it whole."""
    return "replicated" if mesh is None else config.sharding


def begin(config: Config, mesh: Mesh | None, params: PyTree) -> Carry:
    """The state before the first step, as the devices hold it."""
    carry = replicate((params, config.method.init(params)), mesh)
    return taken_over(config, mesh, carry, "replicated")


def taken_over(
    config: Config, mesh: Mesh | None, carry: Carry, saved: Sharding
) -> Carry:
    """What was saved with a sharding, as the devices hold it.

    Between two shardings all is whole on every device for a while. Every process of the
    run calls it at the same time.
    """
    method, held = config.method, holding(config, mesh)
    if saved == held:
        return carry
    if saved != "replicated":
        together = bring_together(saved, mesh, like=carry[0])
        carry = _changed(method, together, saved, carry)
    if held != "replicated":
        carry = _changed(method, share_out(held, mesh), held, carry)
    return carry


def as_saved(
    config: Config, mesh: Mesh | None, params: PyTree, saved: Sharding
) -> Carry:
    """What was saved with a sharding, without its values, where the run takes it to.

    That is where the run holds it, or, to be taken over, whole on every device.
    """
    method = config.method

    def start(params):
        carry = params, method.init(params)
        if saved == "replicated":
            return carry
        return _changed(method, share_out(saved, None), saved, carry)

    params, state = like = jax.eval_shape(start, params)
    if mesh is None or saved != holding(config, mesh):
        return described(like, mesh)
    _, *places = method.places(saved, mesh.size, (None, state, params))
    return described(like, mesh, tuple(reversed(places)))


def _changed(
    method: Method, functions: Functions, sharding: Sharding, carry: Any
) -> Any:
    """The functions applied to what devices share out by a sharding."""
    params, state = carry
    if sharding == "params":
        params = functions.vector(params)
    return params, method.on_shared(functions, state)
