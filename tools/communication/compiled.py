"""One update as XLA compiles it: the collectives in it, and its time."""

import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from communication.hlo import Instruction, Where, parse, places, size
from hfdist.methods.method import make_step
from hfdist.pytree import parameter_count
from hfdist.runs.config import Config
from hfdist.runs.plan import batches_of, optimizer_of
from hfdist.runs.shards import as_saved, begin, holding
from hfdist.sharing import AXIS
from hfdist.tasks.examples import Examples
from toolkit.batches import first_batch

COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(-start)?"
)


class Collective(NamedTuple):
    """One collective instruction of a compiled program."""

    kind: str  # all-reduce, all-gather, reduce-scatter, …
    bytes: int  # of the operands on one device; for an all-gather, of the results
    in_loop: bool  # inside a loop of a length that is not known, as CG's
    branch: bool = False  # inside a branch, which a step may not take
    times: int = 1  # that the other loops around it run it


class Found(NamedTuple):
    """A collective, and where it stands."""

    collective: Collective
    where: Where
    body: list[Instruction]  # of its computation
    place: int  # in the body


def one_update(config: Config, examples: Examples, mesh: Mesh | None = None):
    """An update (carry, batch) -> (carry, info), and its arguments at the start."""
    step, params = _update(config, mesh)
    batch = first_batch(examples, config.batch_size, config.seed)
    return step, (begin(config, mesh, params), batch)


def abstract_update(config: Config, examples: Examples, mesh: Mesh, batch_size: int):
    """An update, and arguments that have shapes and places but take no memory there.

    The params alone are made, once, on this machine's own device.
    """
    step, params = _update(config, mesh)
    split = NamedSharding(mesh, P(AXIS))

    def rows(a: Any) -> jax.ShapeDtypeStruct:
        shape = batch_size, *a.shape[1:]
        return jax.ShapeDtypeStruct(shape, a.dtype, sharding=split)

    batch = jax.tree.map(rows, first_batch(examples, 1, config.seed))
    return step, (as_saved(config, mesh, params, holding(config, mesh)), batch)


def _update(config: Config, mesh: Mesh | None):
    """An update, and the params."""
    problem, params = config.build_problem()
    update = make_step(optimizer_of(config, problem, mesh))

    def step(carry, batch):
        return update(carry, *batches_of(config, batch))

    return step, params


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
    """The collectives of a compiled program, in the order of its text."""
    return [found.collective for found in find_collectives(hlo_text)]


def find_collectives(hlo_text: str) -> list[Found]:
    """The collectives of a compiled program, with where they stand in it.

    An asynchronous one counts where it starts, and not where it ends.
    """
    program, found = parse(hlo_text), []
    runs = places(program)
    for name, body in program.bodies.items():
        types = {instruction.name: instruction.type for instruction in body}
        for place, instruction in enumerate(body):
            matched = COLLECTIVE.fullmatch(instruction.opcode)
            if matched is None:
                continue
            kind, start = matched.groups()
            nbytes = sum(size(types[operand]) for operand in instruction.operands)
            if kind == "all-gather":
                # The type of a start holds its operands, and then its results.
                nbytes = size(instruction.type) - (nbytes if start else 0)
            for where in runs.get(name, ()):
                one = Collective(
                    kind, nbytes, where.unknown, where.at_some_steps, where.trips
                )
                found.append(Found(one, where, body, place))
    return found
