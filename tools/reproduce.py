"""Reproduce the paper: its five methods over seeds, its tables and figures, a report.

    python tools/reproduce.py [--seeds 3] [--quick] [--out DIR] [--json]
        [--unreduced STEPS] [--SETTING VALUE of the configs, such as --devices 4 …]

Trains configs/paper/*.py into DIR/runs/<config>-seed<k>, one after the other, and
writes DIR/report.html, DIR/report.md, DIR/figures/ and DIR/results.json. The same
command goes on where it was stopped, and repeats no run that is complete. Newton
diverges, which is a result. --quick makes a few steps of each (see QUICK): it shows
that everything works, and nothing about the paper. --unreduced adds so many steps of
Newton and damped Newton with the matrix over all params, and extrapolates their time.
"""

import argparse
import platform
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from hfdist.errors import UsageError
from hfdist.runs import metrics
from hfdist.runs.config import Config, load
from hfdist.runs.progress import print_table
from hfdist.runs.run_directory import read_config
from hfdist.runs.train import train
from hfdist.tasks.examples import readable
from paper_report.comparison import PAPER, compare, figures_of, orderings
from paper_report.document import (
    Block,
    Heading,
    Picture,
    Text,
    Warn,
    to_html,
    to_markdown,
)
from paper_report.figures import draw
from paper_report.tables import tables
from paper_report.unreduced import METHODS, unreduced
from paper_report.words import differences
from toolkit import command_line
from toolkit.machine import machine
from toolkit.recorded import Run, provenance, read

CONFIGS = Path(__file__).parent.parent / "configs" / "paper"
# What --quick cuts each method to; 67 steps are one dispatch, 938 an epoch.
QUICK = {
    "sgd": ("--max-steps", "469"),
    "newton": ("--max-steps", "2", "--max-rejected", "2"),
    "damped_newton": ("--max-steps", "3"),
    "hf_newton": ("--max-steps", "201"),
    "hf_gauss_newton": ("--max-steps", "201"),
}
TITLE = "Second-order Optimization Made Practical for Deep Learning, reproduced"
QUICK_WARNING = (
    "Quick run: a few steps of each method. It shows that everything works; its "
    "figures are not the paper's and say nothing about them."
)


def planned(arguments: argparse.Namespace, overrides: Sequence[str]) -> list[Config]:
    """The config of every run, methods in the paper's order, seeds within them."""
    configs = []
    for name in PAPER:
        for seed in range(arguments.seeds):
            run_dir = arguments.out / "runs" / f"{name}-seed{seed}"
            own = ["--seed", str(seed), "--run-dir", str(run_dir)]
            own += QUICK[name] if arguments.quick else ()
            config = load(CONFIGS / f"{name}.py", [*own, *overrides])
            if config.seed != seed or config.run_dir != run_dir:
                raise UsageError(
                    "--seed and --run-dir are not for this tool: use --seeds and --out"
                )
            configs.append(config)
    return configs


def planned_unreduced(configs: Sequence[Config], steps: int) -> list[Config]:
    """The exact solves of the first seed over all params; none for 0 steps."""
    first = [c for c in configs if c.seed == 0 and _name(c.run_dir) in METHODS]
    return [unreduced(config, steps) for config in first] if steps else []


def _name(run_dir: Path | None) -> str:
    """The config's name, of which the run's is made."""
    assert run_dir is not None
    return run_dir.name.rpartition("-seed")[0].removesuffix("_unreduced")


def complete(config: Config) -> bool:
    """Whether the run of a config stands in its folder, evaluated at its end.

    Raises UsageError for a run that went further than the config goes.
    """
    folder = config.run_dir
    assert folder is not None
    if not (folder / "config.json").exists():
        return False
    try:
        lines = metrics.read(folder)
    except UsageError:  # to continue it mends the file, or says what is wrong
        return False
    if not lines or lines[-1]["split"] != "test":  # not begun, or stopped
        return False
    last, found = lines[-1], read_config(folder)
    most = config.max_steps or last["step"]
    if last["step"] > most or last["epoch"] > config.epochs:
        raise UsageError(
            f"{folder} holds a longer run, of {last['step']:,} steps: use another --out"
        )
    if replace(found, run_dir=None) != replace(config, run_dir=None):
        return False
    ended = last["step"] == config.max_steps or last["epoch"] == config.epochs
    return ended or read(folder).diverged


def train_all(configs: Sequence[Config]) -> None:
    """Make the runs that are not complete yet; raises Stopped if a signal stops one."""
    log = Console(stderr=True, highlight=False, markup=False, emoji=False)
    for i, config in enumerate(configs, 1):
        assert config.run_dir is not None
        head = f"[{i}/{len(configs)}] {config.run_dir.name}"
        if complete(config):
            log.print(f"{head}: complete")
            continue
        log.print(head)
        with redirect_stdout(sys.stderr):  # our own output is the result
            result = train(config)
        if result.stopped:
            raise command_line.Stopped("stopped; the same command continues")


def results_of(
    runs: Sequence[Run], without_reduction: Sequence[Run], quick: bool
) -> dict[str, Any]:
    """What results.json holds."""
    examples = len(readable(runs[0].config.data.examples("train")))

    def figures(run: Run) -> dict[str, Any]:
        per_epoch = -(-examples // run.config.batch_size)
        return figures_of(_name(run.folder), run, per_epoch * run.config.epochs)

    rows = [figures(run) for run in runs]
    compared = compare(rows, quick)
    records = [provenance(run.folder) for run in runs]
    return {
        "quick": quick,
        "seeds": sorted({row["seed"] for row in rows}),
        "machine": machine(records[0]["device"]),
        "device": records[0]["device"],
        "versions": {**records[0]["versions"], "python": platform.python_version()},
        "commits": sorted({str(record["git_commit"]) for record in records}),
        "methods": compared,
        "orderings": orderings(compared),
        "differences": differences(compared, rows),
        "runs": rows,
        "unreduced": [figures(run) for run in without_reduction],
    }


def write(results: dict[str, Any], runs: Sequence[Run], out: Path) -> None:
    """Writes everything but the runs."""
    by_method = {name: [r for r in runs if _name(r.folder) == name] for name in PAPER}
    per_epoch = results["methods"][0]["whole"] // runs[0].config.epochs
    pictures = draw(by_method, per_epoch, out / "figures")
    blocks: list[Block] = [Warn(QUICK_WARNING)] if results["quick"] else []
    blocks += [Text(_conditions(results)), Heading("Tables"), *tables(results)]
    blocks.append(Heading("Where ours differs and why"))
    blocks += map(Text, results["differences"])
    blocks.append(Heading("Learning curves"))
    blocks.append(
        Text("Lines are means over the seeds, shaded from the least to the greatest.")
    )
    blocks += [Picture(png, caption) for png, caption in pictures.values()]
    try:
        (out / "report.md").write_text(to_markdown(TITLE, blocks, out))
        (out / "report.html").write_text(to_html(TITLE, blocks))
        text = command_line.to_json(results, indent=2)
        (out / "results.json").write_text(text + "\n")
    except OSError as error:
        raise UsageError(
            f"{error.filename} cannot be written ({error.strerror}): give --out "
            f"another folder"
        ) from None


def _conditions(results: dict[str, Any]) -> str:
    seeds = ", ".join(map(str, results["seeds"]))
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    commits = ", ".join(results["commits"])
    return (
        f"Seeds: {seeds}. Machine: {results['machine']}. Versions: {versions}. Commit: "
        f"{commits}. Figures are means over the seeds, with the least and the greatest "
        f"in brackets; HF stands for Hessian-free."
    )


def _arguments() -> argparse.Namespace:
    parser = command_line.parser(
        "Reproduce the paper's tables and figures.",
        "Further options override every config's, such as --devices 4.",
    )
    add = parser.add_argument
    add("--seeds", type=int, help="number of seeds, from 0; 3, or 1 with --quick")
    add("--quick", action="store_true", help="a few steps of each method, for CI")
    add("--unreduced", type=int, default=0, metavar="STEPS", help="none by default")
    add("--out", type=Path, help="runs/reproduction, or runs/reproduction-quick")
    arguments, arguments.overrides = parser.parse_known_args()
    quick = arguments.quick
    arguments.seeds = (
        (1 if quick else 3) if arguments.seeds is None else arguments.seeds
    )
    arguments.out = arguments.out or Path(
        "runs/reproduction-quick" if quick else "runs/reproduction"
    )
    return arguments


def report(arguments: argparse.Namespace) -> dict[str, Any]:
    """What results.json holds; makes the runs that are missing, and the report."""
    if arguments.seeds < 1:
        raise UsageError(f"--seeds is {arguments.seeds}: use at least 1")
    if arguments.unreduced < 0:
        raise UsageError(f"--unreduced is {arguments.unreduced}: use 0 or more")
    configs = planned(arguments, arguments.overrides)
    extra = planned_unreduced(configs, arguments.unreduced)
    train_all([*configs, *extra])
    runs, without_reduction = (
        [read(c.run_dir) for c in some if c.run_dir] for some in (configs, extra)
    )
    results = results_of(runs, without_reduction, arguments.quick)
    write(results, runs, arguments.out)
    return results


def main() -> int:
    """Reproduce; exit code 2 for a caller's mistake, 75 if stopped by a signal."""
    arguments = _arguments()
    show = partial(_print, out=arguments.out)
    return command_line.run("reproduce", arguments, report, show)


def _print(results: dict[str, Any], out: Path) -> None:
    if results["quick"]:
        print(QUICK_WARNING)
    for grid in tables(results):
        print_table(grid.rows, grid.columns, grid.title)
    print(f"Written to {out}: report.html, report.md, results.json")


if __name__ == "__main__":
    sys.exit(main())
