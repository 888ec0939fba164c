"""The sinks of metrics: exact, valid, and cut back for a continued run."""

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from hfdist import SGD
from hfdist.runs import metrics
from hfdist.runs.config import Config
from hfdist.runs.sinks import open_sinks

CONFIG = Config(method=SGD())


def line(step, loss=1.0, **more):
    values = {"split": "train", "step": step, "epoch": 1, "loss": loss, "seconds": 0.1}
    return values | {"accepted": True, "indefinite": False, "accuracy": 1.0} | more


def write(run_dir, lines, position=0):
    """Go on after a position; the position after the lines."""
    file = metrics.MetricsFile(run_dir, position)
    file.append(lines)
    position = file.sync()
    file.close()
    return position


def test_numbers_read_back_exactly(tmp_path):
    values = [float(np.float32(1) / 3), 0.1 + 0.2, 5e-324, sys.float_info.max]
    write(tmp_path, [line(k, v) for k, v in enumerate(values)])
    assert [x["loss"] for x in metrics.read(tmp_path)] == values


def test_non_finite_values_are_strings_in_valid_json(tmp_path):
    more = {"rho": -math.inf, "damping": math.inf, "accepted": False}
    write(tmp_path, [line(1, math.nan, **more)])

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "metrics.jsonl").read_text()
    raw = json.loads(text, parse_constant=refuse)
    assert (raw["loss"], raw["rho"], raw["damping"]) == ("nan", "-inf", "inf")
    (read,) = metrics.read(tmp_path)
    assert math.isnan(read["loss"])
    assert read["rho"] == -math.inf
    assert read["accepted"] is False
    assert read["split"] == "train"


def test_a_continued_run_drops_what_follows_its_position(tmp_path):
    position = write(tmp_path, [line(k, math.nan) for k in (1, 2)])
    write(tmp_path, [line(k) for k in (3, 4)], position)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "st')  # a kill tore the line
    assert [x["step"] for x in metrics.read(tmp_path, end=position)] == [1, 2]
    assert [x["step"] for x in metrics.read(tmp_path, position)] == [3, 4]
    write(tmp_path, [line(3)], position)
    assert [x["step"] for x in metrics.read(tmp_path)] == [1, 2, 3]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_shortened_file_is_refused(tmp_path):
    write(tmp_path, [line(1)])
    with pytest.raises(ValueError, match=r"has only .* of the 1,000 bytes"):
        metrics.read(tmp_path, end=1000)


def test_tensorboard_gets_the_same_numbers(tmp_path):
    for sink in open_sinks(replace(CONFIG, tensorboard=True), tmp_path, 0, 0):
        sink.append([line(1, 0.25, accepted=True)])
        sink.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"train/loss" in content
    assert np.float32(0.25).tobytes() in content
    assert metrics.read(tmp_path) == [line(1, 0.25, accepted=True)]


@pytest.mark.parametrize(
    ("package", "extra"), [("tensorboardX", "tensorboard"), ("wandb", "wandb")]
)
def test_a_missing_package_is_named_with_the_remedy(
    tmp_path, monkeypatch, package, extra
):
    position = write(tmp_path, [line(1)])
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"pip install 'hfdist\[{extra}\]'"):
        open_sinks(replace(CONFIG, **{extra: True}), tmp_path, 0, 0)
    size = (tmp_path / "metrics.jsonl").stat().st_size
    assert size == position  # nothing has been dropped


def test_wandb_continues_one_run_and_takes_no_line_twice(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = replace(CONFIG, wandb=True)

    def send(step, position, lines):
        """Lines to all sinks of a run that goes on: what W&B has of it then.

        Its summary lags by a step, until which more may come for the last.
        """
        sinks = open_sinks(config, tmp_path, step, position)
        for sink in sinks:
            sink.append(lines)
        run = wandb.run
        seen = run.id, run.step, dict(run.summary)
        for sink in sinks:
            sink.close()
        return seen

    second = [line(2, 0.25, accepted=True), line(2, 9.0, split="test")]
    first_id, step, summary = send(0, 0, [line(1, 0.5), *second, line(3)])
    assert step == 3
    assert summary["train/loss"] == 0.25
    assert summary["train/accepted"] is True
    assert summary["test/loss"] == 9.0
    # On after step 1: steps 2 and 3 come again, 4 and 5 are new.
    position = len(metrics.encode(line(1, 0.5))) + 1
    again = [*second, line(3)]
    same_id, step, summary = send(1, position, again)
    assert (same_id, step) == (first_id, 0)
    assert "train/loss" not in summary
    same_id, step, summary = send(1, position, [*again, line(4, 0.125), line(5)])
    assert (same_id, step) == (first_id, 5)
    assert summary["train/loss"] == 0.125
    assert "test/loss" not in summary
    assert [x["step"] for x in metrics.read(tmp_path)] == [1, 2, 2, 3, 4, 5]
