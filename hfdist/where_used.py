"""A predict that makes its weights where it uses them, and forgets them.

Where devices share out the params, a weight is whole on a device for the time of the
products that use it: it is made, by gathering its parts, at each use, and made again
for each derivative, so that no more than a layer is there at a time. `jax.checkpoint`
around all of predict would not do: it saves what is made of a weight alone, such as the
transpose, and overrules the checkpoints that predict itself has around its layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero

from hfdist.problem import Batch
from hfdist.pytree import PyTree, same

# What makes of a weight only another form of it, by the names of JAX's primitives.
FORMS = {
    *("all_gather", "broadcast_in_dim", "convert_element_type", "reshape"),
    *("slice", "squeeze", "transpose"),
}


@partial(jax.tree_util.register_dataclass, data_fields=["held"], meta_fields=["form"])
@dataclass(frozen=True)
class Weight:
    """A leaf of the params, and what makes of it the value that is used."""

    held: Any  # an array
    form: Callable[[Any], Any]


def where_used(predict: Callable[[PyTree, Batch], Any]) -> Callable:
    """The same predict, with the forms of each leaf of the params made where used.

    A layer that predict computes again for its derivatives gathers its weights inside.
    A `lax.scan` over stacked layers is given them whole, all at once.
    """

    def making(params: PyTree, batch: Batch) -> Any:
        program, outputs = jax.make_jaxpr(predict, return_shape=True)(params, batch)
        weights = [Weight(leaf, same) for leaf in jax.tree.leaves(params)]
        results = _run(program.jaxpr, program.consts, *weights, *jax.tree.leaves(batch))
        return jax.tree.structure(outputs).unflatten(map(_made, results))

    return making


def _run(program: Any, constants: Sequence[Any], *arguments: Any) -> list[Any]:
    """The results of a jaxpr, of which some may be weights as well."""
    names = *program.constvars, *program.invars
    known = dict(zip(names, (*constants, *arguments), strict=True))

    def read(name: Any) -> Any:
        return name.val if hasattr(name, "val") else known[name]  # or a literal

    for equation in program.eqns:
        results = _applied(equation, [read(name) for name in equation.invars])
        known.update(zip(equation.outvars, results, strict=True))
    return [read(name) for name in program.outvars]


def _applied(equation: Any, inputs: list[Any]) -> list[Any]:
    """The results of an equation."""
    from jax.extend.core import primitives  # no stable interface: only where used

    plain = partial(_plain, equation)
    kind, inner = equation.primitive, equation.params.get("jaxpr")
    if not any(isinstance(value, Weight) for value in inputs):
        return plain(*inputs)
    if kind.name in FORMS and len(inputs) == 1:
        return [Weight(inputs[0].held, _then(inputs[0].form, plain))]
    if kind is primitives.jit_p:
        return _run(inner.jaxpr, inner.consts, *inputs)
    if kind is primitives.remat_p:
        settings = {name: equation.params[name] for name in ("policy", "prevent_cse")}
        return jax.checkpoint(partial(_run, inner, ()), **settings)(*inputs)

    def used(*values):
        leaves, structure = jax.tree.flatten(values)
        values = structure.unflatten(_in_turn(*leaves))
        return plain(*map(_made, values))

    return jax.checkpoint(used)(*inputs)


@jax.custom_jvp
def _in_turn(*values: Any) -> Any:
    """The values, none of which is used before all are there.

    So it is with their derivatives, and with what is handed back to them. Without this
    XLA gathers all weights at once, and keeps all of their sums to add them up at once.
    """
    return jax.lax.optimization_barrier(values)


@partial(_in_turn.defjvp, symbolic_zeros=True)
def _in_turn_jvp(values: Any, tangents: Any) -> Any:
    moved = [not isinstance(tangent, SymbolicZero) for tangent in tangents]
    turned = iter(jax.lax.optimization_barrier(list(compress(tangents, moved))))
    return _in_turn(*values), tuple(
        next(turned) if m else t for m, t in zip(moved, tangents, strict=True)
    )


def _plain(equation: Any, *values: Any) -> list[Any]:
    kind = equation.primitive
    results = kind.bind(*values, **kind.get_bind_params(equation.params))
    return results if kind.multiple_results else [results]


def _then(form: Callable[[Any], Any], plain: Callable[[Any], list[Any]]) -> Callable:
    return lambda held: plain(form(held))[0]


def _made(value: Any) -> Any:
    return value.form(value.held) if isinstance(value, Weight) else value
