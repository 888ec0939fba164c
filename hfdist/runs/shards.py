"""What a run's devices share out, and the same whole, as it is saved.

Checkpoints have vectors whole, like the params, so that a run may be continued on any
number of devices, however they share.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from jax.sharding import Mesh

from hfdist.methods.method import State
from hfdist.parallel import bring_together, share_out
from hfdist.pytree import PyTree
from hfdist.runs.config import Config

Carry = tuple[PyTree, State]


def sharing(
    config: Config, mesh: Mesh | None
) -> tuple[Callable[[Carry], Carry], Callable[[Carry], Carry]]:
    """(share, whole): to what the devices hold, from what each has whole; and back.

    Every process of the run calls either at the same time.
    """
    if mesh is None or config.sharding == "replicated":
        return _same, _same
    method = config.method

    def share(carry):
        params, state = carry
        return params, method.on_vectors(partial(share_out, mesh=mesh), state)

    def whole(carry):
        params, state = carry
        together = partial(bring_together, like=params, mesh=mesh)
        return params, method.on_vectors(together, state)

    return share, whole


def _same(carry: Any) -> Any:
    return carry
