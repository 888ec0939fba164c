"""The command line: hfdist train CONFIG.py …, hfdist evaluate RUN_DIR."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hfdist.errors import UsageError
from hfdist.runs.output import tolerate_lost_output

if TYPE_CHECKING:
    from hfdist.runs.evaluate import Evaluation
    from hfdist.runs.recorder import Result

DONE, USAGE, DIVERGED, STOPPED, INTERRUPTED = 0, 2, 3, 75, 130


def main() -> int:
    """Run one command and return its exit code.

    0 done, 2 a caller's mistake, 3 diverged, 75 stopped by a signal after saving.
    """
    arguments = _parser().parse_args()
    try:
        return arguments.run(arguments)
    except UsageError as error:
        _say(error)
        return USAGE
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hfdist", description="Distributed Hessian-free training in JAX."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train as a config file says",
        epilog="`hfdist train CONFIG.py --help` lists every setting.",
    )
    train.add_argument("config", type=Path, metavar="CONFIG.py")
    train.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="--SETTING VALUE",
        help="settings that replace the config's, such as --epochs 1",
    )
    train.set_defaults(run=_train)
    evaluate = commands.add_parser("evaluate", help="evaluate a run's checkpoint")
    evaluate.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    evaluate.add_argument("--step", type=int, help="its step; the newest by default")
    evaluate.add_argument(
        "--config",
        type=Path,
        metavar="CONFIG.py",
        help="the run's config file, if it defines or imports classes of your own",
    )
    evaluate.add_argument("--split", choices=("test", "train"), default="test")
    evaluate.set_defaults(run=_evaluate)
    checkpoints = commands.add_parser(
        "checkpoints", help="list a run's checkpoints, verifying each"
    )
    checkpoints.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    checkpoints.set_defaults(run=_checkpoints)
    return parser


# The commands import what they need when they run: `hfdist --help` should not wait
# for JAX, nor a mistyped config for Orbax.


def _train(arguments: argparse.Namespace) -> int:
    from hfdist.runs.config import load

    config = load(arguments.config, arguments.overrides)

    from hfdist.cluster.processes import is_first, joined
    from hfdist.runs.train import train

    with joined():
        result = train(config, arguments.config.stem)
        if is_first():
            _report(result, config.max_rejected)
    if result.diverged:
        return DIVERGED
    return STOPPED if result.stopped else DONE


def _report(result: "Result", max_rejected: int) -> None:
    from hfdist.runs.progress import digits, print_table

    assert result.test is not None
    print_table(
        [
            ("steps", result.steps),
            ("training loss, mean of the last epoch", digits(result.train_loss)),
            *_figures("test", result.test),
            ("training seconds", f"{result.seconds:.2f}"),
            ("compilation seconds", f"{result.compile_seconds:.2f}"),
            ("steps rejected", result.rejected),
            ("steps with negative curvature", result.indefinite),
            ("run directory", result.run_dir),
        ]
    )
    if result.diverged:
        _say(
            f"diverged: the last {max_rejected} or more updates were rejected (see "
            f"{result.run_dir}/metrics.jsonl); more damping or a smaller learning rate "
            f"may help"
        )
    if result.stopped:
        _say(
            f"stopped after step {result.steps:,}, and saved: the same command with "
            f"--run-dir {result.run_dir} continues"
        )


def _figures(split: str, means: "Evaluation") -> list[tuple[str, str]]:
    """Rows of a table: the loss, and what the task reports beside it."""
    from hfdist.runs.progress import digits, words

    figures = {"loss": means.loss} | means.figures
    return [(f"{split} {words(name)}", digits(x)) for name, x in figures.items()]


def _say(message: object) -> None:
    print(f"hfdist: {message}", file=sys.stderr)


def _checkpoints(arguments: argparse.Namespace) -> int:
    from hfdist.runs.progress import print_table
    from hfdist.runs.resume import survey

    rows = survey(arguments.run_dir)
    print_table([row.values() for row in rows], header=rows[0] if rows else ["none"])
    return DONE


def _evaluate(arguments: argparse.Namespace) -> int:
    from hfdist.runs.config import load
    from hfdist.runs.evaluate import evaluate
    from hfdist.runs.progress import print_table

    if arguments.config:
        load(arguments.config)  # for its classes: a run directory imports none

    split = arguments.split
    step, means = evaluate(arguments.run_dir, arguments.step, split)
    print_table([("step", step), *_figures(split, means)])
    return DONE


def command() -> NoReturn:
    """The process `hfdist`, which ends with main's exit code.

    Of a run that failed nothing is waited for: threads of Orbax may be left with a
    disk that takes no more.
    """
    tolerate_lost_output()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if code in (DONE, STOPPED):
        sys.exit(code)
    os._exit(code)


if __name__ == "__main__":
    command()
