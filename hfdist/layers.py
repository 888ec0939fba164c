"""Which leaves of the params make a layer."""

from typing import Any

import jax

from hfdist.pytree import PyTree


def layers_of(params: PyTree) -> list[list[int]]:
    """The places, among the leaves, of each layer's own, in the leaves' order.

    A layer is an entry of the params; of an entry that is a list of layers (a sequence,
    or a dict by whole numbers, as of a Flax list) each is one. A container with one
    entry is passed through. So {"layers": {0: ..., 1: ...}} has two, {"tokens": E,
    "blocks": {0: ..., 1: ...}, "head": ...} four, and {"first": {"kernel": W, "bias":
    b}, "second": ...} as well as [(W, b), (W, b)] two.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    while min(map(len, paths)) > 1 and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    layers: dict[Any, list[int]] = {}
    for place, path in enumerate(paths):
        # The arrays of a list are the leaves of one layer, as (W, b) is.
        in_list = len(path) > 2 and _is_numbered(path[1])
        layers.setdefault(path[: 2 if in_list else 1], []).append(place)
    return list(layers.values())


def _is_numbered(key: Any) -> bool:
    """Whether a key is a place in a list."""
    return isinstance(getattr(key, "idx", getattr(key, "key", None)), int)
