"""How the minutes of a check are shared out to its parts."""

from collections.abc import Sequence

# In this order; 8 minutes in all. Compilation takes most of them on a GPU.
SECONDS = {
    "environment": 40,
    "numerics": 105,
    "paper": 110,
    "ratios": 70,
    "collectives": 20,
    "memory": 40,
    "kills": 95,
}


def share(waiting: Sequence[str], left: float) -> float | None:
    """Seconds for the first part that waits, of those left; None: it is not run.

    They are shared out in the ratios of SECONDS, so that what a part does not use is
    for those after it. Where the parts would get less than half of SECONDS each, the
    last ones are left out.
    """
    kept = list(waiting)
    while kept and sum(SECONDS[name] for name in kept) > 2 * left:
        kept.pop()
    if not kept:
        return None
    return left * SECONDS[kept[0]] / sum(SECONDS[name] for name in kept)
