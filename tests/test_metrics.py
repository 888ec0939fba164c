"""metrics.jsonl: exact, valid, and cut back for a continued run."""

import json
import math
import sys

import numpy as np
import pytest

from hfdist import metrics


def line(step, loss=1.0, **more):
    values = {"split": "train", "step": step, "epoch": 1, "loss": loss, "seconds": 0.1}
    return values | more


def test_numbers_read_back_exactly(tmp_path):
    values = [float(np.float32(1) / 3), 0.1 + 0.2, 5e-324, sys.float_info.max]
    sinks = metrics.Metrics(tmp_path)
    sinks.append([line(k, v) for k, v in enumerate(values)])
    sinks.close()
    assert [x["loss"] for x in metrics.read(tmp_path)] == values


def test_non_finite_values_are_strings_in_valid_json(tmp_path):
    sinks = metrics.Metrics(tmp_path)
    sinks.append([line(1, math.nan, rho=-math.inf, damping=math.inf, accepted=False)])
    sinks.close()

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
    sinks = metrics.Metrics(tmp_path)
    sinks.append([line(k, math.nan) for k in (1, 2)])
    position = sinks.sync()
    sinks.append([line(k) for k in (3, 4)])
    sinks.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "st')  # a kill tore the line
    reader = metrics.Metrics(tmp_path, position, writes=False)
    assert [x["step"] for x in reader.earlier] == [1, 2]
    assert reader.sync() == 0
    sinks = metrics.Metrics(tmp_path, position)
    assert [x["step"] for x in sinks.earlier] == [1, 2]
    sinks.append([line(3)])
    sinks.close()
    assert [x["step"] for x in metrics.read(tmp_path)] == [1, 2, 3]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_shortened_file_is_refused(tmp_path):
    sinks = metrics.Metrics(tmp_path)
    sinks.append([line(1)])
    sinks.close()
    with pytest.raises(ValueError, match=r"has only .* of the 1,000 bytes"):
        metrics.Metrics(tmp_path, 1000)


def test_tensorboard_gets_the_same_numbers(tmp_path):
    sinks = metrics.Metrics(tmp_path, tensorboard=True)
    sinks.append([line(1, 0.25, accepted=True)])
    sinks.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"train/loss" in content
    assert np.float32(0.25).tobytes() in content


def test_tensorboard_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"pip install 'hfdist\[tensorboard\]'"):
        metrics.Metrics(tmp_path, tensorboard=True)
