"""The communication planner: what it reads off programs, and what it predicts."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import comms
import hfdist
from cases import METHODS
from communication import cost
from communication.compiled import Collective, collectives_of, timer
from communication.cost import Cost, Link
from hfdist.models.mlp import MLP
from hfdist.runs.config import Config
from hfdist.tasks.examples import Arrays
from hfdist.tasks.idx import IDX

ROOT = Path(__file__).parent.parent
HF, SGD = "configs/paper/hf_gauss_newton.py", "configs/paper/sgd.py"
ENV = {k: v for k, v in os.environ.items() if k != "JAX_ENABLE_X64"}  # a user's

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 5), dtype=np.uint8)
EXAMPLES = Arrays({"inputs": PIXELS, "labels": np.arange(32) % 3})


class Few(IDX):
    """Five pixels an image."""

    def pixels(self):
        return 5


SMALL = Config(
    method=METHODS["hf_gauss_newton"],
    model=MLP(hidden=(4,)),
    data=Few(classes=3),
    batch_size=8,
    dtype="float64",
)
N = 39  # its parameters, 5 inputs, 4 hidden units, 3 outputs

# Two loops, one in the other's body; each collective inside is reached in another way.
HLO = """\
HloModule jit_step, is_scheduled=true

FileNames
1 "a.py"

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%called (p: bf16[6]) -> bf16[6] {
  %p = bf16[6]{0} parameter(0)
  ROOT %ar.1 = bf16[6]{0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add
}

%branch (p: pred[3]) -> pred[6] {
  %p = pred[3]{0} parameter(0)
  ROOT %ag.1 = pred[6]{0} all-gather(%p), dimensions={0}
}

%other_branch (p: pred[3]) -> pred[6] {
  %p = pred[3]{0} parameter(0)
  ROOT %ag.2 = pred[6]{0:T(8,128)} broadcast(%p), dimensions={0}
}

%inner_condition (p: s32[]) -> pred[] {
  %p = s32[] parameter(0)
  ROOT %less = pred[] compare(%p, %p), direction=LT
}

%inner_body (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  %q = bf16[6]{0} broadcast(%p), dimensions={}
  %call.1 = bf16[6]{0} call(%q), to_apply=%called
  ROOT %copy = s32[] copy(%p)
}

%body (p: (s32[], pred[3])) -> (s32[], pred[3]) {
  %p = (s32[], /*index=1*/pred[3]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %v = pred[3]{0} get-tuple-element(%p), index=1
  %c = pred[6]{0} conditional(%i, %v, %v), branch_computations={%branch, %other_branch}
  %w = s32[] while(%i), condition=%inner_condition, body=%inner_body
  ROOT %t = (s32[], pred[3]{0}) tuple(%w, %v)
}

%condition (p: (s32[], pred[3])) -> pred[] {
  %p = (s32[], pred[3]{0}) parameter(0)
  %f = f64[2]{0} constant({1, 2})
  %ar.2 = f64[2]{0} all-reduce(%f), replica_groups={{0,1}}, to_apply=%add
  ROOT %true = pred[] constant(true)
}

%wrapped (p: c64[4]) -> c64[2] {
  %p = c64[4]{0} parameter(0)
  ROOT %rs = c64[2]{0} reduce-scatter(%p), dimensions={0}, to_apply=%add
}

ENTRY %main (a: f32[7,10], b: f32[3], c: c64[4]) -> f32[7,10] {
  %a = f32[7,10]{1,0} parameter(0), metadata={op_name="all-reduce(a)"}
  %b = f32[3]{0} parameter(1)
  %c = c64[4]{0} parameter(2)
  %tuple = (s32[], pred[3]{0}) custom-call(), custom_call_target="x"
  %loop = (s32[], pred[3]{0}) while(%tuple), condition=%condition, body=%body
  %both = (f32[7,10]{1,0}, f32[3]{0}) all-reduce(%a, %b), to_apply=%add
  %ars = f32[3]{0} all-reduce-start(%b), to_apply=%add
  %ard = f32[3]{0} all-reduce-done(%ars)
  %ags = (f32[3]{0}, f32[6]{0}) all-gather-start(%ard), dimensions={0}
  %agd = f32[6]{0} all-gather-done(%ags)
  %cps = (f32[3]{0}, f32[3]{0}, u32[], u32[]) collective-permute-start(%b)
  %cpd = f32[3]{0} collective-permute-done(%cps)
  %rss = ((c64[4]{0}), c64[2]{0}) async-start(%c), calls=%wrapped
  %rsd = c64[2]{0} async-done(%rss)
  ROOT %get = f32[7,10]{1,0} get-tuple-element(%both), index=0
}
"""


def test_collectives_of_a_program_with_nested_calls_and_tuples():
    assert collectives_of(HLO) == [
        Collective("all-reduce", 6 * 2, True),  # called by the inner loop
        Collective("all-gather", 6 * 1, True, True),  # in a branch
        Collective("all-reduce", 2 * 8, True),  # in the loop's condition
        Collective("reduce-scatter", 4 * 8, False),  # asynchronous
        Collective("all-reduce", 73 * 4, False),  # a tuple
        Collective("all-reduce", 3 * 4, False),
        Collective("all-gather", 6 * 4, False),
        Collective("collective-permute", 3 * 4, False),
    ]


LINK = Link(bandwidth=1e9, latency=1e-5)
COST = Cost(3e-3, 2e-3, 5e-4, 1e-4)
COLLECTIVES = [
    Collective("all-reduce", 4_000_000, False),
    Collective("all-reduce", 2_000_000, True),
]


def test_all_reduce_seconds():
    assert cost.ring_seconds("all-reduce", 8e6, 1, LINK) == 0
    # 6 rounds of 2 MB
    assert cost.ring_seconds("all-reduce", 8e6, 4, LINK) == pytest.approx(
        6 * (2e-3 + 1e-5)
    )
    # Over many devices: twice the bytes over the link, and a latency every round.
    many = cost.ring_seconds("all-reduce", 8e6, 10**6, LINK)
    assert many == pytest.approx(2 * 8e-3 + 2e6 * 1e-5, rel=1e-4)
    assert cost.ring_seconds("all-reduce", 8e6, 10**6, Link(math.inf, 0)) == 0


def test_step_seconds():
    # On one device there is only arithmetic: 5 CG steps.
    alone = 3e-3 + 5 * 2e-3 + 5e-4 + 5 * 1e-4
    assert cost.step_seconds(COST, 5, COLLECTIVES, 1, LINK) == pytest.approx(alone)
    # 2 rounds of half the bytes each, the product's sum 5 times.
    sending = 2 * (2e-3 + 1e-5) + 5 * 2 * (1e-3 + 1e-5)
    weak = cost.step_seconds(COST, 5, COLLECTIVES, 2, LINK)
    assert weak == pytest.approx(alone + sending)
    strong = cost.step_seconds(COST, 5, COLLECTIVES, 2, LINK, share=0.5)
    assert strong == pytest.approx(alone + sending - (3e-3 + 5 * 2e-3) / 2)
    gather = [Collective("all-gather", 4_000_000, False)]
    gathering = cost.step_seconds(Cost(0, 0, 0, 0), 5, gather, 4, LINK)
    assert gathering == pytest.approx(3 * (1e-3 + 1e-5))


def test_predictions():
    seconds = partial(cost.step_seconds, COST, 5, COLLECTIVES, link=LINK)
    rows = cost.predictions(seconds, batch_size=64)
    assert [row["devices"] for row in rows] == [2**i for i in range(11)]
    assert rows[0]["weak_efficiency"] == rows[0]["strong_efficiency"] == 1
    assert rows[0]["communication_ms"] == 0
    assert rows[1]["weak_ms"] == pytest.approx(14 + 14.12)
    assert rows[1]["weak_efficiency"] == pytest.approx(14 / 28.12)
    assert rows[1]["strong_ms"] == pytest.approx(14 + 14.12 - 6.5)
    assert rows[1]["strong_efficiency"] == pytest.approx(14 / 2 / 21.62)
    # 64 examples are for 64 devices at most.
    assert [row["devices"] for row in rows if "strong_ms" in row][-1] == 64

    free = partial(cost.step_seconds, COST, 5, COLLECTIVES, link=Link(math.inf, 0))
    assert {row["weak_efficiency"] for row in cost.predictions(free, 64)} == {1}


def test_fit_finds_the_four_times():
    def seconds(batch, steps):
        return 5e-4 + 1e-5 * batch + steps * (1e-4 + 2e-5 * batch)

    points = [(b, k, seconds(b, k)) for b in (16, 64) for k in (2, 10)]
    expected = pytest.approx((64e-5, 128e-5, 5e-4, 1e-4))
    assert cost.fit(points, 64) == expected
    # No CG; and a negative time at batch 0 is noise.
    assert cost.fit([(1, 0, 2.0), (4, 0, 5.0)], 4) == pytest.approx((4, 0, 1, 0))
    assert cost.fit([(1, 0, 1.0), (4, 0, 7.0)], 4) == pytest.approx((7, 0, 0, 0))


def test_cg_that_ends_too_soon_to_be_timed_is_refused(monkeypatch):
    config = replace(SMALL, method=hfdist.HessianFree(damping=1e12))
    run = timer(config, EXAMPLES)  # one program for all that would be timed
    monkeypatch.setattr(cost, "timer", lambda *_: run)
    with pytest.raises(ValueError, match="CG ends here before its third step"):
        cost.measured_cost(config, EXAMPLES)


@pytest.mark.slow
def test_the_command():
    command = [sys.executable, "tools/comms.py", HF, "--devices", "4", "--json"]
    options = ["--cg-steps", "7", "--product-ms", "5", "--batch-size", "784"]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, env=ENV, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["parameters"] == 7960
    assert said["batch_size"] == 784
    outside, inside = said["collectives"]
    assert (outside["kind"], outside["in_loop"]) == ("all-reduce", False)
    assert (inside["kind"], inside["in_loop"]) == ("all-reduce", True)
    assert (outside["count"], outside["bytes"]) == (1, 4 * 7962)
    assert (inside["count"], inside["bytes"]) == (1, 4 * 7960)
    assert said["bytes_per_step"] == 4 * 7962 + 7 * 4 * 7960
    assert said["rounds_per_step"] == 8 * 6
    assert said["arithmetic_ms"][0]["per_cg_step"] == 5
    assert said["predictions"][0]["weak_efficiency"] == 1
    assert said["predictions"][0]["weak_ms"] > 7 * 5


def test_what_a_branch_sends_is_in_no_sum():
    assert cost.repeats(Collective("all-reduce", 8, False, True), 5) == 0
    assert cost.repeats(Collective("all-reduce", 8, False), 5) == 1
    assert cost.repeats(Collective("all-reduce", 8, True, True), 5) == 5
    assert cost.repeats(Collective("all-gather", 8, True, times=3), 5) == 15


def test_a_reduced_step_is_listed_and_not_predicted(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["comms.py", HF, "--devices", "4", "--json"])
    assert comms.main() == 0
    said = json.loads(capsys.readouterr().out)
    assert "give the --batch-size of many devices" in said["not_predicted"]
    unknowns = 64 * 10 + 10 + 110
    gathered = {64 * 784, 64 * 10, 64 * 64}  # inputs, first product, Gram matrix
    found = {(c["kind"], c["bytes"] // 4, c["in_loop"]) for c in said["collectives"]}
    assert found == {("all-gather", n, False) for n in gathered} | {
        ("all-reduce", unknowns + 2, False),
        ("all-reduce", unknowns, True),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py", "--devices", "4"], "config nowhere.py does not exist"),
        ([HF, "--devices", "0"], "--devices is 0: use a number above 0"),
        ([HF, "--devices", "1"], "--devices 1: use 2 or more"),
        ([HF, "--devices", "3"], "that can share the batch of 64 evenly"),
        ([HF, "--devices", "4", "--bandwidth", "-5"], "--bandwidth is -5"),
        ([HF, "--devices", "4", "--latency", "nan"], "--latency is nan"),
        ([SGD, "--devices", "4", "--cg-steps", "3"], "SGD takes no CG steps"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    arguments, message, monkeypatch, capsys
):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["comms.py", *arguments])
    assert comms.main() == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not said.out
