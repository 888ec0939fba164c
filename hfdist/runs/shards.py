"""What a run's devices share out, and the same whole, as it is saved.

Checkpoints have the params and all of the state whole, so that a run may be continued
on any number of devices, however they share.
"""

from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from hfdist.methods.method import State
from hfdist.pytree import PyTree
from hfdist.runs.config import Config
from hfdist.sharing import bring_together, share_out

Carry = tuple[PyTree, State]


def sharing(
    config: Config, mesh: Mesh | None
) -> tuple[Callable[[Carry], Carry], Callable[[Carry], Carry]]:
    """(share, whole): to what the devices hold, from what each has whole; and back.

    Every process of the run calls either at the same time.
    """
    if mesh is None or config.sharding == "replicated":
        return _same, _same
    sharding = config.sharding

    def changed(functions, carry):
        params, state = carry
        if sharding == "params":
            params = functions.vector(params)
        return params, config.method.on_shared(functions, state)

    def share(carry):
        return changed(share_out(sharding, mesh), carry)

    def whole(carry):
        return changed(bring_together(sharding, mesh, like=carry[0]), carry)

    return share, whole


def _same(carry: Any) -> Any:
    return carry
