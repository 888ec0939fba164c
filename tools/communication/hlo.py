"""The text form of XLA's HLO: its instructions, and where in a step each runs."""

import math
import re
from typing import NamedTuple

COMPUTATION = re.compile(r"^(ENTRY )?%([\w.-]+) \(.*\{$((?:\n .*|\n)*)", re.MULTILINE)
INSTRUCTION = re.compile(
    r"^ +(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\(([^)]*)\)(.*)$", re.MULTILINE
)
CALLED = re.compile(
    r"\b(?:condition|body|to_apply|calls|\w+_computations?)=(\{[^}]*\}|%[\w.-]+)"
)
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
NAME = re.compile(r"%([\w.-]+)")
ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")  # f32[784,10], f8e4m3fn[3], …
# The others call computations too, such as the addition of an all-reduce, but as one
# instruction.
RUNS_OTHERS = {"while", "conditional", "call", "async-start"}


class Instruction(NamedTuple):
    """A line of a computation."""

    name: str
    type: str
    opcode: str
    operands: list[str]  # names; of a parameter, its number
    attributes: str

    @property
    def called(self) -> list[str]:
        """The computations that it names."""
        return NAME.findall(" ".join(CALLED.findall(self.attributes)))


class Program(NamedTuple):
    """The computations of a compiled program, each in the order of its schedule."""

    entry: str
    bodies: dict[str, list[Instruction]]


class Where(NamedTuple):
    """Where in a step a computation runs."""

    in_loop: bool = False  # in the body or condition of a while loop
    at_some_steps: bool = False  # in a branch
    trips: int = 1  # of the loops around it whose length is known, multiplied
    unknown: bool = False  # in a loop of another length, as CG's is


def parse(text: str) -> Program:
    """The program of a text."""
    entry, bodies = "", {}
    for is_entry, name, body in COMPUTATION.findall(text):
        bodies[name] = [
            Instruction(called, type_, opcode, _names(opcode, operands), attributes)
            for called, type_, opcode, operands, attributes in INSTRUCTION.findall(body)
        ]
        entry = name if is_entry else entry
    return Program(entry, bodies)


def _names(opcode: str, operands: str) -> list[str]:
    return [operands] if opcode == "parameter" else NAME.findall(operands)


def places(program: Program) -> dict[str, list[Where]]:
    """Where each computation runs that does, in one place or several."""
    found: dict[str, list[Where]] = {}
    waiting = [(program.entry, Where())]
    while waiting:
        name, where = waiting.pop()
        found.setdefault(name, []).append(where)
        for instruction in program.bodies[name]:
            if instruction.opcode in RUNS_OTHERS:
                inside = _inside(instruction, where)
                waiting += [(called, inside) for called in instruction.called]
    return found


def _inside(instruction: Instruction, where: Where) -> Where:
    if instruction.opcode == "conditional":
        return where._replace(at_some_steps=True)
    if instruction.opcode != "while":
        return where
    known = TRIPS.search(instruction.attributes)
    if known is None:
        return where._replace(in_loop=True, unknown=True)
    return where._replace(in_loop=True, trips=where.trips * int(known[1]))


def size(hlo_type: str) -> int:
    """Bytes of an array type, or of all the arrays in a tuple type."""
    return sum(map(_bytes, ARRAY.findall(hlo_type)))


def _bytes(array: tuple[str, str, str]) -> int:
    letters, digits, shape = array
    bits = int(digits) if digits else 8 * (letters == "pred")  # a token has none
    return -(-bits * math.prod(int(n) for n in shape.split(",") if n) // 8)
