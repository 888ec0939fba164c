"""What a step on many GPUs sends, holds and takes, from its compiled programs.

Of a step that is compiled for two batches everything is known for others too, by the
straight line through both: `share` says how many times the first one's examples a GPU
has.
"""

import re
from collections import Counter, defaultdict
from typing import Any, NamedTuple

from communication.arithmetic import CG_STEP, LEFT_OUT, ONCE, PLACES, SOME_STEPS
from communication.cards import JAX_TAKES, Card
from communication.compiled import Found, find_collectives
from communication.gpu_compiler import Compiled, Step
from communication.gpu_cost import (
    Layout,
    Work,
    arithmetic_seconds,
    at_share,
    collective_seconds,
    place_of,
)
from communication.hlo import parse
from communication.kernels import kernels_between, traffic

SYNCHRONOUS = re.compile(r'"is_sync":\s*true')
GROUPS = re.compile(r"replica_groups=(?:\[(\d+),(\d+)\]<=|\{(\{[\d,{}]*\})\})")
MOST = 1024  # GPUs in the table of predictions, if there are not more


class Part(NamedTuple):
    """A collective of a step."""

    kind: str
    bytes: int
    groups: str  # of devices that it is among, their number and size
    place: str
    beside: int | None  # kernels from its start to its end; None: it is synchronous
    times: int  # at its place


class Plan(NamedTuple):
    """What a prediction starts from."""

    parts: list[Part]
    works: list[dict[str, Work]]  # by place, of each of the step's programs
    memory: list[int]  # bytes, of each
    repeats: dict[str, int]  # of the places in a step that takes no branch
    card: Card
    layout: Layout
    efficiency: float


def plan(
    step: Step, cg_steps: int, card: Card, layout: Layout, efficiency: float
) -> Plan:
    """What the programs of a step say."""
    return Plan(
        parts=[part(found) for found in find_collectives(step.programs[0].hlo)],
        works=[works_of(program) for program in step.programs],
        memory=[sum(program.memory.values()) for program in step.programs],
        repeats={ONCE: 1, CG_STEP: cg_steps},
        card=card,
        layout=layout,
        efficiency=efficiency,
    )


def part(found: Found) -> Part:
    """What there is to say of a collective."""
    line = found.body[found.place]
    asynchronous = line.opcode.endswith("-start")
    asynchronous = asynchronous and not SYNCHRONOUS.search(line.attributes)
    return Part(
        kind=found.collective.kind,
        bytes=found.collective.bytes,
        groups=groups_of(line.attributes),
        place=place_of(found.where),
        beside=kernels_between(found.body, found.place) if asynchronous else None,
        times=found.where.trips,
    )


def groups_of(attributes: str) -> str:
    """The groups of devices that a collective is among, in words."""
    found = GROUPS.search(attributes)
    if found is None:
        return "all"
    number, devices, listed = found.groups()
    if listed:
        groups = listed.split("},{")
        number, devices = len(groups), groups[0].count(",") + 1
    return f"{int(number):,}x{int(devices):,}"


def works_of(program: Compiled) -> dict[str, Work]:
    """What a GPU does at each place of a step."""
    counts: dict[str, dict[str, float]] = {place: {} for place in PLACES}
    for place, name, number in program.operations:
        if place != LEFT_OUT:
            counts[place][name] = number
    nbytes, kernels = defaultdict(float), defaultdict(float)
    for where, touched, launched in traffic(parse(program.hlo)):
        nbytes[place_of(where)] += touched
        kernels[place_of(where)] += launched
    return {p: Work(counts[p], nbytes[p], kernels[p]) for p in PLACES}


def seconds(plan: Plan, place: str, share: float, gpus: int) -> tuple[float, float]:
    """(arithmetic, communication) of a place of a step, once."""
    work = at_share(plan.works[0][place], plan.works[1][place], share)
    layout = plan.layout.of(gpus)
    sending = sum(
        one.times * collective_seconds(one.kind, one.bytes, layout)
        for one in plan.parts
        if one.place == place
    )
    return arithmetic_seconds(work, plan.card, plan.efficiency), sending


def step_seconds(plan: Plan, share: float, gpus: int) -> tuple[float, float]:
    """(arithmetic, communication) of a step that takes no branch."""
    each = [(n, seconds(plan, p, share, gpus)) for p, n in plan.repeats.items()]
    return sum(n * of[0] for n, of in each), sum(n * of[1] for n, of in each)


def memory_at(plan: Plan, share: float) -> float:
    """Bytes of a GPU's memory."""
    one, two = plan.memory
    return one + (share - 1) * (two - one)


def report(step: Step, plan: Plan, batch_size: int) -> dict[str, Any]:
    """All there is to say of a step, ready for JSON."""
    gpus = plan.layout.hosts * plan.layout.each
    places = {place: seconds(plan, place, 1, gpus) for place in PLACES}
    usual = sum(step_seconds(plan, 1, gpus))
    said = {
        "parameters": step.parameters,
        "batch_size": batch_size,
        "share": batch_size // gpus,
        "cg_steps": plan.repeats[CG_STEP],
        "hosts": plan.layout.hosts,
        "gpus_per_host": plan.layout.each,
        "card": plan.card.name,
        "jax": step.jax,
        "efficiency": plan.efficiency,
        "bandwidth_gb_per_s": plan.layout.between.bandwidth / 1e9,
        "latency_us": 1e6 * plan.layout.between.latency,
        "bytes_per_step": sum(
            plan.repeats.get(one.place, 0) * one.times * one.bytes for one in plan.parts
        ),
        "collectives": collective_rows(plan),
        "memory": [memory_row(step.programs[0], plan.card)],
        "work": [
            work_row(place, work, *places[place])
            for place, work in plan.works[0].items()
            if work.kernels
        ],
        "step_ms": 1e3 * usual,
        "step_with_all_branches_ms": 1e3 * (usual + sum(places[SOME_STEPS])),
        "not_counted": not_counted(step.programs[0]),
    }
    return said


def not_counted(program: Compiled) -> list[str]:
    """Operations whose number is not known."""
    return sorted(name for place, name, _ in program.operations if place == LEFT_OUT)


def collective_rows(plan: Plan) -> list[dict[str, Any]]:
    """Rows of a table of the collectives, those that are alike in one."""
    rows = []
    for one, count in Counter(plan.parts).items():
        took = collective_seconds(one.kind, one.bytes, plan.layout)
        times = count * one.times
        rows.append({**one._asdict(), "times": times, "ms_each": 1e3 * took})
    return sorted(rows, key=lambda row: PLACES.index(row["place"]))


def memory_row(program: Compiled, card: Card) -> dict[str, Any]:
    """What a GPU holds, in MB, and whether it can."""
    total = sum(program.memory.values())
    return {
        **{f"{name}_mb": n / 1e6 for name, n in program.memory.items()},
        "total_mb": total / 1e6,
        "card_gb": card.memory / 1e9,
        "percent": 100 * total / card.memory,
        "fits": total <= JAX_TAKES * card.memory,
    }


def work_row(place: str, work: Work, arithmetic: float, sending: float):
    """What a GPU does at a place of a step, once."""
    return {
        "place": place,
        "gflop": sum(work.operations.values()) / 1e9,
        "moved_mb": work.bytes / 1e6,
        "kernels": round(work.kernels),
        "arithmetic_ms": 1e3 * arithmetic,
        "sending_ms": 1e3 * sending,
    }


def predictions(plan: Plan, batch_size: int) -> list[dict[str, Any]]:
    """Rows of a table of step times, of a step that takes no branch.

    Weak: every GPU has as many examples as it was compiled for; strong: all of them
    together have the batch. The efficiency is that of one GPU with the same share.
    """
    total, rows = plan.layout.hosts * plan.layout.each, []
    alone = sum(step_seconds(plan, 1, 1))
    whole = sum(step_seconds(plan, total, 1))
    for gpus in numbers(plan.layout):
        arithmetic, sending = step_seconds(plan, 1, gpus)
        weak = arithmetic + sending
        row = {"gpus": gpus, "sent_ms": 1e3 * sending, "weak_ms": 1e3 * weak}
        row |= {"weak_efficiency": alone / weak}
        if gpus <= batch_size:  # there is an example for every GPU
            strong = sum(step_seconds(plan, total / gpus, gpus))
            row |= {
                "strong_ms": 1e3 * strong,
                "strong_efficiency": whole / gpus / strong,
                "strong_gb": memory_at(plan, total / gpus) / 1e9,
            }
        rows.append(row)
    return rows


def numbers(layout: Layout) -> list[int]:
    """Of GPUs: powers of two in a host, then of hosts, and as many as there are."""
    total = layout.hosts * layout.each
    most = max(MOST, total)
    inside = (2**i for i in range(layout.each.bit_length()))
    hosts = (layout.each * 2**i for i in range(most.bit_length()))
    return sorted({total, *inside, *(n for n in hosts if n <= most)})
