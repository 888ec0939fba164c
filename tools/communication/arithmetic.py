"""The floating-point operations of a step, counted in its program without running it.

Counted is what tools/racing/operations.py counts while a step runs, and convolutions.
A loop whose length is in the program counts that often. One that ends by a test, as
CG's does, is counted for one of its steps, and apart; so is what a branch outside of it
has, the dearest one, which is taken at some steps. Inside of it that is taken.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.lax import Precision

from racing.operations import COSTS, UNKNOWN

ONCE, CG_STEP, SOME_STEPS = "every step", "CG step", "some steps"
PLACES = ONCE, CG_STEP, SOME_STEPS
LEFT_OUT = "left out"  # in place of a number format, with how often
# Holders of programs, which are counted; and a cost of its own below.
COUNTED = {"shard_map", "custom_linear_solve", "conv_general_dilated"}

Count = Counter[tuple[str, str]]  # (place, number format) -> operations


def operations(program: Any, place: str = ONCE) -> Count:
    """What a jaxpr does: operations by place and by number format.

    What is not known how to count is there by its name, as (LEFT_OUT, name) -> times.
    """
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    total: Count = Counter()
    for equation in jaxpr.eqns:
        total.update(_of_equation(equation, place))
    return total


def _of_equation(equation: JaxprEqn, place: str) -> Count:
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        body = operations(params["jaxpr"], place)
        return Counter({key: params["length"] * n for key, n in body.items()})
    if name == "while":
        return operations(params["body_jaxpr"], CG_STEP if place == ONCE else place)
    if name == "cond":
        inside = SOME_STEPS if place == ONCE else place
        branches = [operations(branch, inside) for branch in params["branches"]]
        return max(branches, key=Counter.total)
    if name in UNKNOWN - COUNTED:
        return Counter({(LEFT_OUT, name): 1})
    cost = CONVOLUTION.get(name) or COSTS.get(name)
    if cost is not None:
        return Counter({(place, number_format(equation)): cost(equation)})
    total: Count = Counter()
    for program in _programs(params.values()):
        total.update(operations(program, place))
    return total


def _programs(values: Any) -> Iterator[Jaxpr | ClosedJaxpr]:
    for value in values:
        if isinstance(value, Jaxpr | ClosedJaxpr):
            yield value


def number_format(equation: JaxprEqn) -> str:
    """What units multiply it: GPUs take TF32 for a float32 product at no precision."""
    operand: Any = equation.invars[0].aval
    dtype, precision = operand.dtype, equation.params.get("precision")
    if dtype == np.float64:
        return "float64"
    if dtype.itemsize == 2:
        return "bfloat16"
    product = "precision" in equation.params
    asked = precision is not None and precision != (Precision.DEFAULT,) * 2
    return "tf32" if product and not asked else "float32"


def _convolution(equation: JaxprEqn) -> float:
    """2 for each output, weight of it, and input that is no filling."""
    params = equation.params
    kernel, outputs = map(_shape, (equation.invars[1], equation.outvars[0]))
    weights = math.prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(outputs) * weights / math.prod(params["lhs_dilation"])


def _shape(atom: Any) -> tuple[int, ...]:
    return atom.aval.shape


CONVOLUTION = {"conv_general_dilated": _convolution}
