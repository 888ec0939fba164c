"""One update as XLA compiles it: the collectives in it, and its time."""

import math
import re
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from hfdist.methods.method import make_step
from hfdist.pytree import parameter_count
from hfdist.runs.config import Config
from hfdist.runs.plan import batches_of, optimizer_of
from hfdist.tasks.examples import Examples
from toolkit.batches import first_batch

# The text form of XLA's HLO, as far as collectives need it.
COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.-]+) \(.*\{$((?:\n .*|\n)*)", re.MULTILINE)
TYPED = re.compile(r"%([\w.-]+) = (.*?) [a-z][\w-]*\(")
COLLECTIVE = re.compile(
    r" = (.*?) (all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)"
    r"(-start)?\(([^)]*)\)"
)
CALLED = re.compile(
    r"\b(?:condition|body|to_apply|calls|\w+_computations?)=(\{[^}]*\}|%[\w.-]+)"
)
NAME = re.compile(r"%([\w.-]+)")
ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")  # f32[784,10], f8e4m3fn[3], …


class Collective(NamedTuple):
    """One collective instruction of a compiled program."""

    kind: str  # all-reduce, all-gather, reduce-scatter, …
    bytes: int  # of the operands on one device; for an all-gather, of the results
    in_loop: bool  # inside the body or condition of a while loop


def one_update(config: Config, examples: Examples, mesh: Mesh | None = None):
    """An update (carry, batch) -> (carry, info), and its arguments at the start."""
    problem, params = config.build_problem()
    optimizer = optimizer_of(config, problem, mesh)
    update = make_step(optimizer)
    batch = first_batch(examples, config.batch_size, config.seed)

    def step(carry, batch):
        return update(carry, *batches_of(config, batch))

    return step, ((params, optimizer.init(params)), batch)


def timer(config: Config, examples: Examples) -> Callable[[], tuple[float, float]]:
    """Takes updates on one device: () -> seconds and CG steps of one."""
    step, arguments = one_update(config, examples)
    # Small ones are taken in one scan, as in training, so that dispatch counts little.
    work = config.batch_size * parameter_count(arguments[0][0])
    count = 1 + min(19, int(1e8 / work))

    @jax.jit
    def steps(carry, batch):
        return jax.lax.scan(lambda c, _: step(c, batch), carry, length=count)

    def run() -> tuple[float, float]:
        began = time.perf_counter()
        _, infos = jax.block_until_ready(steps(*arguments))
        return (time.perf_counter() - began) / count, float(infos.cg_steps.mean())

    return run


def collectives_of(hlo_text: str) -> list[Collective]:
    """The collectives of a compiled program, in the order of its text.

    An asynchronous one counts where it starts, and not where it ends.
    """
    bodies = dict(COMPUTATION.findall(hlo_text))
    in_loop = _repeated(bodies)
    found = []
    for name, body in bodies.items():
        types = dict(TYPED.findall(body))
        for result, kind, start, operands in COLLECTIVE.findall(body):
            nbytes = sum(_size(types[operand]) for operand in NAME.findall(operands))
            if kind == "all-gather":
                # The type of a start holds its operands, and then its results.
                nbytes = _size(result) - (nbytes if start else 0)
            found.append(Collective(kind, nbytes, name in in_loop))
    return found


def _repeated(bodies: dict[str, str]) -> set[str]:
    """The computations that some while loop runs, however deep."""

    def called(text: str) -> list[str]:
        return NAME.findall(" ".join(CALLED.findall(text)))

    lines = "\n".join(bodies.values()).splitlines()
    waiting = [name for line in lines if " while(" in line for name in called(line)]
    repeated = set()
    while waiting:
        name = waiting.pop()
        if name not in repeated:
            repeated.add(name)
            waiting += called(bodies[name])
    return repeated


def _size(hlo_type: str) -> int:
    """Bytes of an array type, or of all the arrays in a tuple type."""
    total = 0
    for letters, digits, shape in ARRAY.findall(hlo_type):
        bits = int(digits) if digits else 8 * (letters == "pred")  # a token has none
        total += -(-bits * math.prod(int(n) for n in shape.split(",") if n) // 8)
    return total
