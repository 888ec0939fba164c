"""What a run's devices hold, and the same as a checkpoint has it.

A checkpoint has params and vectors as the run had them that saved it: shared out, or
whole. So a run may be continued on any number of devices, however they share.
"""

from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from hfdist.methods.method import Method, State
from hfdist.parallel import replicate
from hfdist.problem import Problem
from hfdist.pytree import PyTree
from hfdist.runs.config import Config
from hfdist.runs.parts import placed
from hfdist.sharing import Functions, Sharding, bring_together, described, share_out

Carry = tuple[PyTree, State]


def holding(config: Config, mesh: Mesh | None) -> Sharding:
    """What the run's devices share out: one device has all of it whole."""
    return "replicated" if mesh is None else config.sharding


def made(config: Config, mesh: Mesh | None) -> tuple[Problem, PyTree]:
    """The problem and the first params; those of many devices are on the host.

    Where devices share them out they are made there as well, and on no device whole.
    """
    if mesh is None:
        return config.build_problem()
    shares, place = 1, nullcontext()
    if config.sharding == "params":
        shares = mesh.size
        with suppress(RuntimeError):  # JAX_PLATFORMS may leave the host out
            place = jax.default_device(jax.local_devices(backend="cpu")[0])
    with place:
        problem, params = config.build_problem(shares)
    return problem, jax.device_get(params)


def begin(config: Config, mesh: Mesh | None, params: PyTree) -> Carry:
    """The state before the first step, as the devices hold it: at no time do they hold
    more of what they share out."""
    method, held = config.method, holding(config, mesh)
    if held == "replicated":
        return replicate((params, method.init(params)), mesh)
    like = as_saved(config, mesh, params, held)
    places = jax.tree.map(lambda leaf: leaf.sharding, like)
    start = jax.jit(partial(_start, method, held), out_shardings=places)
    return start(jax.tree.map(placed, params, like[0]))


def taken_over(
    config: Config, mesh: Mesh | None, carry: Carry, saved: Sharding
) -> Carry:
    """What was saved with a sharding, as the devices hold it.

    From or to shared vectors all is whole on every device for a while. Every process of
    the run calls it at the same time.
    """
    method, held = config.method, holding(config, mesh)
    if _alike(saved, held):
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
    method, held = config.method, holding(config, mesh)
    params, state = like = jax.eval_shape(partial(_start, method, saved), params)
    if mesh is None or not _alike(saved, held):
        return described(like, mesh)
    _, *places = method.places(held, mesh.size, (None, state, params))
    return described(like, mesh, tuple(reversed(places)))


def _alike(saved: Sharding, held: Sharding) -> bool:
    """Whether the arrays of one are those of the other, in other places at most."""
    return saved == held or "vectors" not in (saved, held)


def _start(method: Method, sharding: Sharding, params: PyTree) -> Carry:
    """The state before the first step, in the form of a sharding."""
    carry = params, method.init(params)
    if sharding == "replicated":
        return carry
    return _changed(method, share_out(sharding, None), sharding, carry)


def _changed(
    method: Method, functions: Functions, sharding: Sharding, carry: Any
) -> Any:
    """The functions applied to what devices share out by a sharding."""
    params, state = carry
    if sharding == "params":
        params = functions.vector(params)
    return params, method.on_shared(functions, state)
