"""The seconds of a step on GPUs, from what its program does and a card's peaks.

    arithmetic = max(Σ operations / peak, bytes / bandwidth of the memory) / efficiency
                 + kernels · least time of one

A collective goes inside the hosts first, by NVLink, then between them, where each GPU
has an adapter and sends its part of the bytes; each time as the ring or the tree, which
is the faster (as NCCL chooses: src/graph/tuning.cc). Of P devices and n bytes

    all-reduce, ring    2 (P-1) · (n/P / bandwidth + latency)
    all-reduce, tree    2 n / bandwidth + 2 log₂ P · latency
    others, ring          (P-1) · (n/P / bandwidth + latency)

Nothing overlaps, and the host is never waited for.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from communication.arithmetic import CG_STEP, ONCE, SOME_STEPS
from communication.cards import KERNEL, Card
from communication.cost import Link, ring_seconds
from communication.hlo import Where


class Work(NamedTuple):
    """What one GPU does."""

    operations: Mapping[str, float]  # by number format
    bytes: float  # read from its memory and written to it
    kernels: float


class Layout(NamedTuple):
    """Which GPUs there are, and what joins them."""

    hosts: int
    each: int  # GPUs of a host
    inside: Link
    between: Link

    def of(self, gpus: int) -> "Layout":
        """So many of these GPUs, in as few hosts as hold them."""
        hosts = math.ceil(gpus / self.each)
        return self._replace(hosts=hosts, each=min(gpus, self.each))


def place_of(where: Where) -> str:
    """The place of a step that something is at."""
    if where.unknown:
        return CG_STEP
    return SOME_STEPS if where.at_some_steps else ONCE


def at_share(one: Work, two: Work, share: float) -> Work:
    """The work on `share` of the examples, from that on all of them and on twice."""

    def line(a: float, b: float) -> float:
        return max(a + (share - 1) * (b - a), 0.0)

    formats = {*one.operations, *two.operations}
    return Work(
        {f: line(one.operations.get(f, 0), two.operations.get(f, 0)) for f in formats},
        line(one.bytes, two.bytes),
        one.kernels,
    )


def arithmetic_seconds(work: Work, card: Card, efficiency: float) -> float:
    """Seconds of the work on one GPU."""
    computing = sum(n / card.peak[f] for f, n in work.operations.items())
    moving = work.bytes / card.bandwidth
    return max(computing, moving) / efficiency + work.kernels * KERNEL


def collective_seconds(kind: str, nbytes: float, layout: Layout) -> float:
    """Seconds of one collective, inside the hosts and between them."""
    inside = _level_seconds(kind, nbytes, layout.each, layout.inside)
    part = nbytes / layout.each
    return inside + _level_seconds(kind, part, layout.hosts, layout.between)


def _level_seconds(kind: str, nbytes: float, devices: int, link: Link) -> float:
    ring = ring_seconds(kind, nbytes, devices, link)
    if kind != "all-reduce" or devices == 1:
        return ring
    hops = 2 * math.log2(devices)
    return min(ring, 2 * nbytes / link.bandwidth + hops * link.latency)
