"""Benchmarks: ratios measured within one run, beside the limits they should keep.

    python tools/bench.py step [--json]      # a step's cost against what it must cost
    python tools/bench.py scaling [--json]   # steps over several processes
    python tools/bench.py checkpoint [--json]  # what saving costs
    python tools/bench.py exact [--json]     # the exact step, and HF-GN beside SGD
    python tools/bench.py pipeline [--json]  # reading batches, beside their steps
    python tools/bench.py race --problem wide [--json]  # optimisers from one start

Seconds vary from machine to machine and hour to hour; a ratio of two things timed in
turn on the same machine does not. Medians over interleaved repeats.
"""

import argparse
import sys
from collections.abc import Sequence

from benchmarks import race
from benchmarks.exact import exact
from benchmarks.measurement import Measurement, print_measurements
from benchmarks.pipeline import pipeline
from benchmarks.saving import checkpoint
from benchmarks.scaling import scaling
from benchmarks.step import step
from toolkit import command_line

BENCHMARKS = {
    "step": step,
    "scaling": scaling,
    "checkpoint": checkpoint,
    "exact": exact,
    "pipeline": pipeline,
}


def report(arguments: argparse.Namespace) -> list[Measurement]:
    """What one benchmark measures."""
    return BENCHMARKS[arguments.benchmark]()


def missed(measurements: Sequence[Measurement]) -> int:
    """Exit code 1 if a limit is missed."""
    return int(not all(m.kept for m in measurements))


def main() -> int:
    """Run one benchmark; exit code 1 if a limit is missed, 2 for a caller's mistake."""
    parser = command_line.parser("Ratios beside their limits, and a race.")
    commands = parser.add_subparsers(dest="benchmark", required=True)
    made = {
        name: commands.add_parser(name, allow_abbrev=False)
        for name in (*BENCHMARKS, "race")
    }
    for one in made.values():
        # Where it is left out the answer of the parser above stays.
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS)
    race.add_options(made["race"])
    arguments = parser.parse_args()
    if arguments.benchmark == "race":
        return command_line.run("bench", arguments, race.report, race.show)
    return command_line.run("bench", arguments, report, print_measurements, missed)


if __name__ == "__main__":
    sys.exit(main())
