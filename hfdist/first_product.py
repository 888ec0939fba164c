"""A network split behind its first product A = X W, for the input reduction.

The product is found in the program that predict is, or named by a `KernelFirst`.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
from jax.flatten_util import ravel_pytree

from hfdist.errors import UsageError
from hfdist.parallel import Collectives
from hfdist.problem import Batch, KernelFirst, Problem, penalised
from hfdist.pytree import PyTree, parameter_count, working_dtype

INPUTS = "['inputs']"


class FirstProduct(NamedTuple):
    """A network split behind its first product."""

    rest: Problem  # predicts from params with A (B, m) of all devices as the kernel
    params: PyTree  # such params
    inputs: jax.Array  # X (B, d) of this device
    split: Callable[[PyTree], tuple[jax.Array, jax.Array]]  # the other leaves, W's
    join: Callable[[jax.Array, jax.Array], PyTree]


class Shorter(NamedTuple):
    """Where the kernel is, the product X W, and the network behind it."""

    kernel: int  # its place among the leaves of the params
    product: Callable[[Any, Any], Any]  # X, W -> A
    behind: Callable[[PyTree, Any], Any]  # (params with A for W, batch) -> outputs
    unknowns: int = 0  # of the solve: params, with A of all devices in W's place


def shorten(
    problem: Problem,
    params: PyTree,
    batch: Batch,
    devices: int,
    held: Callable[[int, int], int],
) -> Shorter | str:
    """The network behind its first product, or why it is not solved for there.

    `batch` is one device's share. held(n, B) is what the solver holds, in numbers, for
    n unknowns in the span of B inputs; of all params for B = 0.
    """
    if penalised(problem):
        return "the gradient of its l2 penalty is outside the span of the inputs"
    dtype = working_dtype(params)
    if any(leaf.dtype != dtype for leaf in jax.tree.leaves(params)):
        return f"some of its params are not {dtype}"
    if getattr(batch.get("inputs"), "ndim", None) != 2:
        return "the batch has no matrix of inputs (B, d)"
    shorter = _shorten(problem.predict, params, batch)
    if isinstance(shorter, str):
        return shorter
    kernel = jax.tree.leaves(params)[shorter.kernel]
    product = jax.eval_shape(shorter.product, batch["inputs"], kernel)
    if not product.dtype == kernel.dtype == batch["inputs"].dtype:
        return "its inputs, first kernel and their product differ in dtype"
    examples, features = devices * len(batch["inputs"]), batch["inputs"].shape[1]
    if examples >= features:
        return f"a batch has {examples:,} examples of only {features:,} inputs"
    n = parameter_count(params)
    unknowns = n - kernel.size + examples * kernel.shape[1]
    reduced = held(unknowns, examples)
    if reduced > held(n, 0):
        return (
            f"the solve would take memory for {reduced:,} numbers in the span of the "
            f"inputs, and takes {held(n, 0):,}"
        )
    return shorter._replace(unknowns=unknowns)


def first_product(
    shorter: Shorter, loss: Callable, params: PyTree, batch: Batch, devices: Collectives
) -> FirstProduct:
    """The split over the examples of all devices."""
    leaves, structure = jax.tree.flatten(params)
    index, x_BD = shorter.kernel, batch["inputs"]
    a_BM = devices.gather(shorter.product(x_BD, devices.vary(leaves[index])))

    def predict(params, batch):
        leaves = jax.tree.leaves(params)
        leaves[index] = devices.share(leaves[index])
        return shorter.behind(structure.unflatten(leaves), batch)

    def split(tree):
        leaves = jax.tree.leaves(tree)
        kernel = leaves.pop(index)
        return ravel_pytree(leaves)[0], kernel

    _, unravel = ravel_pytree(leaves[:index] + leaves[index + 1 :])

    def join(others, kernel):
        leaves = unravel(others)
        leaves.insert(index, kernel)
        return structure.unflatten(leaves)

    params = join(split(params)[0], a_BM)
    return FirstProduct(Problem(predict, loss), params, x_BD, split, join)


def _shorten(predict: Callable, params: PyTree, batch: Batch) -> Shorter | str:
    if isinstance(predict, KernelFirst):
        return _named(predict, params)
    try:
        from jax.extend import core  # not a stable interface: only where it is used
    except ImportError as error:
        return f"this JAX has no jax.extend.core ({error})"
    return _found(core, predict, params, batch)


def _named(predict: KernelFirst, params: PyTree) -> Shorter:
    paths = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    if predict.kernel not in paths:
        raise UsageError(
            f"KernelFirst names {predict.kernel!r}, which the params lack: they have "
            f"{', '.join(paths)}"
        )
    return Shorter(
        paths.index(predict.kernel), lambda x, kernel: x @ kernel, predict.behind
    )


def _found(
    core: ModuleType, predict: Callable, params: PyTree, batch: Batch
) -> Shorter | str:
    """The split of the program that predict is, or why there is none."""
    count = len(jax.tree.leaves(params))
    entries = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(batch)
    ]
    program, outputs = jax.make_jaxpr(predict, return_shape=True)(params, batch)
    invars = program.jaxpr.invars
    product = _only_use(program.jaxpr, invars[count + entries.index(INPUTS)])
    if product is None:
        return "its inputs are used more than once"
    if product.primitive is not core.primitives.dot_general_p:
        return f"its inputs go into {product.primitive}, not into inputs @ kernel"
    kernel = product.invars[1]
    plain = product.params["dimension_numbers"] == (((1,), (0,)), ((), ()))
    if not plain or isinstance(kernel, core.Literal) or kernel not in invars[:count]:
        return "its first product is not inputs @ kernel with a kernel of the params"
    if _only_use(program.jaxpr, kernel) is None:
        return "its first kernel is used more than once"

    # The program without the product takes A where it took the kernel.
    behind = program.jaxpr.replace(
        invars=[product.outvars[0] if v is kernel else v for v in invars],
        eqns=[equation for equation in program.jaxpr.eqns if equation is not product],
    )
    run = core.jaxpr_as_fun(program.replace(jaxpr=behind))

    def rest(params, batch):
        results = run(*jax.tree.leaves(params), *jax.tree.leaves(batch))
        return jax.tree.structure(outputs).unflatten(results)

    def same_product(x, kernel):
        return product.primitive.bind(x, kernel, **product.params)

    return Shorter(invars.index(kernel), same_product, rest)


def _only_use(program: Any, variable: Any) -> Any:
    """The equation that alone uses a variable, which uses it once; None: no such."""
    uses = [e for e in program.eqns for v in e.invars if v is variable]
    escapes = any(v is variable for v in program.outvars)
    return uses[0] if len(uses) == 1 and not escapes else None
