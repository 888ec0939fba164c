"""A check of this machine's GPUs, or of its CPU, that finds out all it can by itself.

    python tools/gpu.py [--out DIR] [--minutes 8] [--again PART,PART] [--quick]
        [--commit NAME] [--json]

Its parts, each in a process of its own with a limit of its own:

    environment   devices, driver, versions, memory
    numerics      products, gradients and solves in float32, on each precision
    paper         the paper's methods by `hfdist train`, for a few steps
    ratios        costs of a product, a step and the trainer, as tools/bench.py has them
    collectives   all-reduces over several devices, against a model
    memory        of an update, as compiled and at its peak
    kills         a run killed ten times, against one that was not

One that crashes, hangs or runs out of memory is a line of the report, with what it had
found before. What is known is in DIR/gpu.json and DIR/gpu.md at once, and what was
printed in DIR/gpu.log. The same command goes on with what is missing or failed, and
--again does parts anew. --minutes is for all that one command does: what no longer fits
is not run. --quick makes everything small, to try the command itself. Where a copy of
the repository has no git, --commit says what it is of.

Nothing is written outside DIR, no setting of a GPU is changed, its memory is taken as
it is needed, and no process is left behind. Exit codes: 0 every part passed or is not
for this machine, 1 one failed or was not run, 2 a caller's mistake, 75 stopped by a
signal.
"""

import sys

from gpu_check.packages import lacking


def main() -> int:
    """Check; says what is not installed, all at once, before it needs any of it."""
    if missing := lacking():
        print(
            f"gpu: {', '.join(missing)} not installed here: install them and what they "
            f"need, or carry their wheels",
            file=sys.stderr,
        )
        return 2
    from gpu_check import job

    return job.main()


if __name__ == "__main__":
    sys.exit(main())
