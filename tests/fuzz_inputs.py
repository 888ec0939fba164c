"""Odd inputs for the commands, each of them made from a seed.

make(seed, folder, base) puts what it needs into the folder, whose "cwd" is where the
command runs, and gives the command. Nothing that is valid takes long: a run has 2
steps, or an epoch of 2.
"""

import json
import os
import random
import shutil
from pathlib import Path

import idx_files
from fuzz_values import EXPRESSIONS, RAISING, TEXTS, mutated, number_near, odd_json
from hfdist.runs.config import load, to_json
from together import ROOT

PAPER = ("sgd", "newton", "damped_newton", "hf_newton", "hf_gauss_newton")


class Base:
    """Sound data and runs, which the inputs are damaged copies of."""

    def __init__(self, folder: Path):
        self.data = idx_files.make_folder(folder / "data")
        self.run, self.other = folder / "run", folder / "other"
        self.config = config_file("hf_gauss_newton")
        self.tiny = (
            f"--data.dir {self.data} --data.classes 3 --model.hidden 2 --batch-size 50 "
            f"--epochs 1 --max-steps 2 --checkpoint-steps 1 --steps-per-dispatch 1 "
            f"--compilation-cache {folder / 'cache'}"
        ).split()

    def commands(self) -> list[list]:
        """What makes the runs."""
        return [
            ["hfdist", "train", self.config, *self.tiny, "--run-dir", run, "--seed", k]
            for k, run in enumerate((self.run, self.other))
        ]


def config_file(name: str) -> Path:
    return ROOT / "configs" / "paper" / f"{name}.py"


def make(seed: int, folder: Path, base: Base) -> list:
    """The command of a seed."""
    rng = random.Random(seed)
    (folder / "cwd").mkdir()
    kinds = [setting] * 3 + [option] + [file] * 2 + [run_dir] * 2 + [data, tree]
    return kinds[seed % len(kinds)](rng, folder, base)


def setting(rng: random.Random, folder: Path, base: Base) -> list:
    """Odd values of one or two settings of a config."""
    config = config_file(rng.choice(PAPER))
    settings = dict(_leaves(to_json(load(config))))
    del settings[rng.choice(["epochs", "max_steps"])]  # one of them ends the run
    argv = ["hfdist", "train", config, *base.tiny]
    for name in rng.sample(sorted(settings), rng.choice([1, 1, 2])):
        value, flag = rng.choice(TEXTS), f"--{name.replace('_', '-')}"
        if isinstance(settings[name], bool):
            argv.append(rng.choice([flag, flag, f"{flag}={value}"]))
            continue
        if settings[name] is None or isinstance(settings[name], int | float):
            value = rng.choice([value, *(number_near(rng, settings[name]),) * 3])
        argv += rng.choice([[flag, value], [f"{flag}={value}"]])
    return argv


def _leaves(tree, prefix=""):
    """(dotted name, value) of each setting."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        elif name != "class":
            yield prefix + name, value


def option(rng: random.Random, folder: Path, base: Base) -> list:
    """Odd options and arguments of the commands and tools."""
    run = shutil.copytree(base.run, folder / "run")
    command, options = rng.choice(
        [
            (["hfdist", "train"], ["--run-dir", "--init-from", "--nothing", "-x"]),
            (["hfdist", "evaluate"], ["--step", "--split", "--config", "--nothing"]),
            (["hfdist", "checkpoints"], ["--step", "-h"]),
            (["hfdist"], ["--version", "-v", "trian"]),
            (["plot"], ["--out", "--config", "--json", "--steps"]),
            (["plot"], ["--out", "--config"]),
            (["spectrum"], ["--step", "--devices", "--examples", "--top", "--out"]),
            (["spectrum"], ["--curvature", "--config", "--top"]),
        ]
    )
    place = base.config if "train" in command else run
    argv = [*command, rng.choice([place, place, place, rng.choice(TEXTS)])]
    value = rng.choice([rng.choice(TEXTS), number_near(rng, 1)])
    flag = rng.choice(options)
    argv += rng.choice([*([flag, value], [f"{flag}={value}"]) * 3, [flag], [value]])
    return argv + (base.tiny if "train" in command else [])


FILE = """\
import hfdist
from dataclasses import dataclass, field
from pathlib import Path
import numpy as np
import jax.numpy as jnp
from hfdist import *
from hfdist.runs.config import Config
from hfdist.tasks.idx import IDX
from hfdist.models.mlp import MLP
from hfdist.checks import Count, NonNegative
@dataclass(frozen=True, kw_only=True)
class Mine(HessianFree):
    extra: Count = {extra}
config = Config(
    method={method}({name}={value}),
    model=MLP(hidden={hidden}),
    data=IDX(dir={data!r}, classes={classes}),
    batch_size=50, max_steps=2, epochs=1, steps_per_dispatch=1,
)
{more}
"""


def file(rng: random.Random, folder: Path, base: Base) -> list:
    """A config file with odd Python in it, or that is no Python at all."""
    parts = {"extra": "1", "method": "HessianFree", "name": "damping", "value": "4.0"}
    parts |= {"hidden": "(2,)", "classes": "3", "data": str(base.data), "more": ""}
    where = rng.choice(["value", "value", "name", "extra", "method", "hidden", "more"])
    names = ["learning_rate", "damping_rule", "cg", "damping_bounds", "warm_start"]
    if where == "value":
        parts["name"] = rng.choice(["damping", *names])
    elif where == "extra":
        parts["method"] = "Mine"
    chosen = {"name": [*names, "nothing", "class_"], "more": RAISING}
    parts[where] = rng.choice(chosen.get(where, EXPRESSIONS))
    text = FILE.format(**parts).encode()
    at = rng.randrange(len(text))
    damaged = rng.choice(
        [*[text] * 5, text[:at], text[:at] + rng.randbytes(3) + text[at:], b"", b"\0"]
    )
    path = folder / rng.choice(["config.py", "a b.py", "x*[1].py", "none", "é.py"])
    path.write_bytes(damaged)
    cache = base.tiny[-2:]
    if rng.random() < 0.2:
        return [rng.choice(["plot", "spectrum"]), base.run, "--config", path]
    return ["hfdist", "train", path, *cache]


def run_dir(rng: random.Random, folder: Path, base: Base) -> list:
    """A command for a run directory that something happened to."""
    run = shutil.copytree(base.run, folder / "run")
    for _ in range(rng.choice([1, 1, 2])):
        damage = rng.choice([_damage_config, _damage_metrics, _damage_checkpoints])
        damage(rng, run, base)
    return _command(rng, run, base)


def _command(rng: random.Random, run: Path, base: Base) -> list:
    more = ["--max-steps", rng.choice(["2", "3"]), "--epochs", "2"]
    return rng.choice(
        [
            ["hfdist", "train", base.config, *base.tiny, *more, "--run-dir", run],
            ["hfdist", "evaluate", run],
            ["hfdist", "checkpoints", run],
            ["plot", run],
            ["spectrum", run, "--top", "2"],
        ]
    )


def _damage_config(rng: random.Random, run: Path, _: Base) -> None:
    path = run / "config.json"
    if path.is_file() and rng.random() < 0.7:
        record = mutated(rng, json.loads(path.read_text()))
        path.write_text(json.dumps(record))
    else:
        _damage_file(rng, path)


def _damage_metrics(rng: random.Random, run: Path, _: Base) -> None:
    path = run / "metrics.jsonl"
    if not path.is_file() or rng.random() < 0.4:
        _damage_file(rng, path)
        return
    lines = path.read_text().splitlines()
    at = rng.randrange(len(lines))
    change = rng.choice(["mutate", "mutate", "drop", "twice", "shuffle", "odd", "cut"])
    if change == "mutate":
        lines[at] = json.dumps(mutated(rng, json.loads(lines[at])))
    elif change == "drop":
        del lines[at]
    elif change == "twice":
        lines.insert(at, lines[at])
    elif change == "shuffle":
        rng.shuffle(lines)
    elif change == "odd":
        lines.insert(at, json.dumps(odd_json(rng)))
    else:
        lines = lines[:at]
    path.write_text("".join(line + "\n" for line in lines))


def _damage_file(rng: random.Random, path: Path) -> None:
    """Damage any file, or put something else in its place."""
    old = path.read_bytes() if path.is_file() else b"x" * 40
    at = rng.randrange(len(old) or 1)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    rng.choice(
        [
            lambda: path.write_bytes(old[:at]),
            lambda: path.write_bytes(old[:at] + rng.randbytes(9) + old[at + 9 :]),
            lambda: path.write_bytes(b"\0" * len(old)),
            lambda: path.write_bytes(old + old),
            lambda: path.write_bytes(b"[" * 10**5),
            lambda: path.write_bytes(b"1" * 5000 + b"\n"),
            lambda: path.write_text("{}\n"),
            lambda: path.mkdir(),
            lambda: os.mkfifo(path),
            lambda: path.symlink_to(path),
            lambda: path.symlink_to("/dev/zero"),
            lambda: path.symlink_to("/nowhere"),
            lambda: None,  # it is gone
        ]
    )()


def _damage_checkpoints(rng: random.Random, run: Path, base: Base) -> None:
    folder = run / "checkpoints"
    steps = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if not steps:
        return
    step = rng.choice(steps)
    files = sorted(p for p in step.rglob("*") if p.is_file()) or [step]
    name = rng.choice(["abc", "-1", "1e3", "007", "3.tmp", "99999999999999999999", "7"])
    rng.choice(
        [
            lambda: shutil.rmtree(folder),
            lambda: _damage_file(rng, folder),
            lambda: shutil.rmtree(step),
            lambda: step.rename(folder / name),
            lambda: shutil.copytree(base.run / "checkpoints" / "2", folder / name),
            lambda: (folder / name).touch(),
            lambda: (folder / name).mkdir(),
            lambda: (folder / name).symlink_to(step),
            lambda: _damage_file(rng, step),
            lambda: shutil.copytree(base.other / "checkpoints" / "2", folder / "3"),
            *[lambda: _damage_file(rng, rng.choice(files))] * 6,
        ]
    )()


def data(rng: random.Random, folder: Path, base: Base) -> list:
    """A command for data that something happened to."""
    odd = shutil.copytree(base.data, folder / rng.choice(["data", "a[/b]", "x*", "é"]))
    path = rng.choice(sorted(odd.iterdir()))
    raw = bytearray(path.read_bytes())
    change = rng.choice(["header", "header", "header", "any", "name"])
    if change == "header":
        at = rng.randrange(min(16, len(raw)))
        raw[at] = rng.choice([0, 1, 8, 11, 12, 127, 255])
        path.write_bytes(raw)
    elif change == "any":
        _damage_file(rng, path)
    else:
        path.rename(odd / rng.choice(["train", "t10k-images-idx", "é.gz", path.stem]))
    if rng.random() < 0.5:
        return ["hfdist", "train", base.config, *base.tiny, "--data.dir", odd]
    run = shutil.copytree(base.run, folder / "run")
    record = json.loads((run / "config.json").read_text())
    record["config"]["data"]["dir"] = str(odd)
    (run / "config.json").write_text(json.dumps(record))
    split = ["--split", rng.choice(["train", "test"])]
    return rng.choice([["hfdist", "evaluate", run, *split], ["spectrum", run]])


def tree(rng: random.Random, folder: Path, base: Base) -> list:
    """A config tree that no config made."""
    found = to_json(load(config_file(rng.choice(PAPER))))
    for _ in range(rng.choice([1, 1, 3])):
        found = mutated(rng, found)
    (folder / "tree.json").write_text(json.dumps(found))
    return ["from_json", folder / "tree.json"]
