"""The operations that a function makes, counted while it runs.

XLA's own count takes the body of a loop once, and of a branch the dearest; here a loop
counts as often as it runs, and a branch where it is taken. Counted are the
floating-point operations of

    matrix products   2 m n k, inner products too
    Cholesky factors  n³ / 3
    triangular solves n² for each right-hand side

(Golub & Van Loan 2013, sections 4.2 and 3.1). What goes element by element is left out;
with what takes more, such as eigenvalues, the count is NaN: not known.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

Counted = tuple[list[Any], Any]  # outputs, operations: a number, or traced


def counted(function: Callable) -> Callable[..., tuple[Any, Array]]:
    """The function with its operations: (*args) -> (outputs, () float32).

    It computes what the function computes, under jax.jit too. Not to be differentiated.
    """

    def run(*args):
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs, operations = _run(program, jax.tree.leaves(args))
        outputs = jax.tree.unflatten(jax.tree.structure(shapes), outputs)
        return outputs, jnp.float32(operations)

    return run


def _run(program: ClosedJaxpr, args: Sequence[Any]) -> Counted:
    """Evaluate a program, one equation after the other."""
    values = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    values |= dict(zip(program.jaxpr.invars, args, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    operations = 0.0
    for equation in program.jaxpr.eqns:
        rule = RULES.get(equation.primitive.name, _plain)
        outputs, more = rule(equation, list(map(read, equation.invars)))
        values |= dict(zip(equation.outvars, outputs, strict=True))
        operations += more
    return list(map(read, program.jaxpr.outvars)), operations


def _plain(equation: JaxprEqn, args: list[Any]) -> Counted:
    """What calls no program."""
    primitive = equation.primitive
    outputs = primitive.bind(*args, **equation.params)
    outputs = list(outputs) if primitive.multiple_results else [outputs]
    if primitive.name in UNKNOWN:
        return outputs, math.nan
    cost = COSTS.get(primitive.name)
    return outputs, cost(equation) if cost else 0.0


def _call(equation: JaxprEqn, args: list[Any]) -> Counted:
    params = equation.params
    program = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
    if not isinstance(program, ClosedJaxpr):
        program = ClosedJaxpr(program, ())
    return _run(program, args)


def _while(equation: JaxprEqn, args: list[Any]) -> Counted:
    params = equation.params
    first = params["cond_nconsts"]
    second = first + params["body_nconsts"]
    of_test, of_body, start = args[:first], args[first:second], args[second:]

    def unfinished(carry):
        return _run(params["cond_jaxpr"], [*of_test, *carry[0]])[0][0]

    def body(carry):
        outputs, more = _run(params["body_jaxpr"], [*of_body, *carry[0]])
        return outputs, carry[1] + more

    return jax.lax.while_loop(unfinished, body, (start, jnp.float32(0)))


def _cond(equation: JaxprEqn, args: list[Any]) -> Counted:
    def branch(program):
        def run(*operands):
            outputs, operations = _run(program, operands)
            return outputs, jnp.float32(operations)

        return run

    branches = list(map(branch, equation.params["branches"]))
    return jax.lax.switch(args[0], branches, *args[1:])


def _scan(equation: JaxprEqn, args: list[Any]) -> Counted:
    params = equation.params
    first, cut = _constants_and_carry(params)
    second = first + cut
    constants, start, rows = args[:first], args[first:second], args[second:]

    def body(carry, row):
        outputs, more = _run(params["jaxpr"], [*constants, *carry[0], *row])
        return (outputs[:cut], carry[1] + more), outputs[cut:]

    (end, operations), stacked = jax.lax.scan(
        body,
        (start, jnp.float32(0)),
        rows,
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*end, *stacked], operations


def _constants_and_carry(params: dict[str, Any]) -> tuple[int, int]:
    """How many of a scan's arguments are either."""
    if "num_carry" in params:
        return params["num_consts"], params["num_carry"]
    constants, carry, _ = params["ft_in"].unpack()  # since JAX 0.11
    return len(constants), len(carry)


def _product(equation: JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = _shape(equation.invars[0])
    inner = math.prod(left[i] for i in contracted)
    return 2.0 * inner * math.prod(_shape(equation.outvars[0]))


def _cholesky(equation: JaxprEqn) -> float:
    factor = _shape(equation.outvars[0])
    return math.prod(factor) * factor[-1] / 3


def _triangular(equation: JaxprEqn) -> float:
    side = _shape(equation.invars[0])[-1]
    return 1.0 * side * math.prod(_shape(equation.outvars[0]))


def _shape(atom: Any) -> tuple[int, ...]:
    return atom.aval.shape


RULES: dict[str, Callable[[JaxprEqn, list[Any]], Counted]] = {
    "while": _while,
    "cond": _cond,
    "scan": _scan,
    **dict.fromkeys(("jit", "closed_call", "remat2", "checkpoint"), _call),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), _call),
}
COSTS: dict[str, Callable[[JaxprEqn], float]] = {
    "dot_general": _product,
    "cholesky": _cholesky,
    "triangular_solve": _triangular,
}
UNKNOWN = {
    *("conv_general_dilated", "ragged_dot_general", "fft", "tridiagonal_solve"),
    *("eigh", "eig", "svd", "schur", "qr", "lu", "geqrf", "geqp3"),
    *("householder_product", "tridiagonal", "hessenberg"),
    *("custom_linear_solve", "shard_map", "pure_callback", "ffi_call", "pallas_call"),
}
