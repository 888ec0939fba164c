"""The planner for NVIDIA GPUs: what it reads off programs, what it predicts."""

import json
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import comms
import hfdist
from communication import gpu_compiler, gpu_cost, gpu_report
from communication.arithmetic import (
    CG_STEP,
    ONCE,
    SOME_STEPS,
)
from communication.cards import CARDS, KERNEL
from communication.compiled import abstract_update, collectives_of, one_update
from communication.cost import Link
from communication.gpu_compiler import Compiled, Step, compile_step
from communication.gpu_cost import Layout
from communication.gpu_report import Part
from communication.hlo import parse
from hfdist.errors import UsageError
from hfdist.runs.config import load
from hfdist.tasks.examples import readable

ROOT = Path(__file__).parent.parent
HF, SGD = "configs/paper/hf_gauss_newton.py", "configs/paper/sgd.py"

# A loop that ends by a test, as CG's, one of five steps, and a branch.
HLO = """\
HloModule jit_step, is_scheduled=true

%sum (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add = f32[] add(%x, %y)
}

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0} negate(%p)
}

%quarter (p: f32[8]) -> f32[2] {
  %p = f32[8]{0} parameter(0)
  %m = f32[4,2]{1,0} bitcast(%p)
  %s = f32[1,2]{1,0} slice(%m), slice={[1:2], [0:2]}
  ROOT %r = f32[2]{0} bitcast(%s)
}

%learn (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %probe-start = f32[4]{0} all-reduce-start(%p), channel_id=3, \
replica_groups={{0,1},{2,3}}, to_apply=%sum, \
backend_config={"collective_backend_config":{"is_sync":true}}
  ROOT %probe-done = f32[4]{0} all-reduce-done(%probe-start)
}

%keep (p: f32[4]) -> f32[4] {
  ROOT %p = f32[4]{0} parameter(0)
}

%test (s: (s32[], f32[8])) -> pred[] {
  %s = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %less = pred[] fusion(%i), kind=kLoop, calls=%fused
}

%product (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %v = f32[8]{0} get-tuple-element(%s), index=1
  %gemm = (f32[8]{0}, s8[4194304]{0}) custom-call(%v, %v), custom_call_target="g"
  %g = f32[8]{0} get-tuple-element(%gemm), index=0
  %ars = f32[8]{0} all-reduce-start(%g), replica_groups=[1,4]<=[4], to_apply=%sum
  %next = s32[] fusion(%i), kind=kLoop, calls=%fused
  %ard = f32[8]{0} all-reduce-done(%ars)
  ROOT %t = (s32[], f32[8]{0}) tuple(%next, %ard)
}

%layer (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %v = f32[8]{0} get-tuple-element(%s), index=1
  %w = f32[8]{0} fusion(%v), kind=kLoop, calls=%fused
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %w)
}

ENTRY %main (a: f32[8], b: f32[4], c: s32[]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %b = f32[4]{0} parameter(1)
  %c = s32[] parameter(2)
  %s = (s32[], f32[8]{0}) tuple(%c, %a)
  %scan = (s32[], f32[8]{0}) while(%s), condition=%test, body=%layer, \
backend_config={"known_trip_count":{"n":"5"}}
  %grad = f32[8]{0} fusion(%a), kind=kLoop, calls=%fused
  %loss = f32[2]{0} fusion(%a), kind=kLoop, calls=%quarter
  %ars = (f32[8]{0}, f32[2]{0}) all-reduce-start(%grad, %loss), to_apply=%sum
  %aside = f32[8]{0} copy(%a)
  %ard = (f32[8]{0}, f32[2]{0}) all-reduce-done(%ars)
  %cond = f32[4]{0} conditional(%c, %b, %b), branch_computations={%learn, %keep}
  %cg = (s32[], f32[8]{0}) while(%scan), condition=%test, body=%product
  ROOT %x = f32[8]{0} get-tuple-element(%cg), index=1
}
"""
PARTS = [
    Part("all-reduce", 16, "2x2", SOME_STEPS, None, 1),
    Part("all-reduce", 32, "1x4", CG_STEP, 1, 1),
    Part("all-reduce", 40, "all", ONCE, 1, 1),
]
MEMORY = {"arguments": 40, "outputs": 0, "temporaries": 60}


def program(examples):
    """A program whose operations and memory are of so many examples."""
    counted = [(ONCE, "tf32", 1e9 * examples), (CG_STEP, "float32", 1e8)]
    memory = MEMORY | {"temporaries": 60 * examples}
    return Compiled(HLO, memory, counted)


STEP = Step(8, "0.10.2", [program(1), program(2)])
LAYOUT = Layout(4, 8, Link(100e9, 1e-6), Link(10e9, 1e-5))
PLAN = gpu_report.plan(STEP, 3, CARDS["H100"], LAYOUT, 0.5)


def test_the_collectives_of_a_program_for_gpus():
    assert PLAN.parts == PARTS


def test_what_a_program_reads_and_writes_where():
    work = gpu_report.works_of(program(1))
    # 5 layers of 64 bytes and a test of 5; gradient 64, loss 8 of 32 and 8, copy 64.
    assert work[ONCE][1:] == (5 * (64 + 5) + 144, 5 * 2 + 4)
    # A matrix product, without its workspace; the sum; a number; the test.
    assert work[CG_STEP][1:] == (64 + 8 + 5, 4)
    assert work[SOME_STEPS][1:] == (0, 1)
    assert work[ONCE].operations == {"tf32": 1e9}


def test_the_groups_of_a_collective():
    assert gpu_report.groups_of("replica_groups=[2,512]<=[512,2]T(1,0)") == "2x512"
    assert gpu_report.groups_of("replica_groups=[1,1024]<=[1024]") == "1x1,024"
    assert gpu_report.groups_of("replica_groups={{0,1,2}}, x={1}") == "1x3"
    assert gpu_report.groups_of("channel_id=1, replica_groups={}") == "all"


def test_step_seconds():
    arithmetic, sending = gpu_report.step_seconds(PLAN, 1, 32)
    once = max(1e9 / 494e12, 489 / 3.352e12) / 0.5 + 14 * KERNEL
    each = max(1e8 / 67e12, 77 / 3.352e12) / 0.5 + 4 * KERNEL
    assert arithmetic == pytest.approx(once + 3 * each)
    all_reduce = partial(gpu_cost.collective_seconds, "all-reduce", layout=LAYOUT)
    assert sending == pytest.approx(all_reduce(40) + 3 * all_reduce(32))
    # Twice the examples: operations of the first place alone are theirs.
    more = gpu_report.step_seconds(PLAN, 2, 32)[0] - arithmetic
    assert more == pytest.approx(1e9 / 494e12 / 0.5)


def test_predictions():
    rows = gpu_report.predictions(PLAN, batch_size=64)
    assert [row["gpus"] for row in rows] == [
        1,
        2,
        4,
        8,
        16,
        32,
        64,
        128,
        256,
        512,
        1024,
    ]
    assert rows[0]["weak_efficiency"] == rows[0]["strong_efficiency"] == 1
    assert rows[0]["sent_ms"] == 0
    compiled_for = rows[5]
    assert compiled_for["weak_ms"] == pytest.approx(compiled_for["strong_ms"])
    assert compiled_for["strong_gb"] == pytest.approx(100e-9)
    assert rows[0]["strong_gb"] == pytest.approx((40 + 32 * 60) / 1e9)
    assert [row["gpus"] for row in rows if "strong_ms" in row][-1] == 64
    assert gpu_report.numbers(LAYOUT._replace(hosts=3, each=6))[:6] == [
        1,
        2,
        4,
        6,
        12,
        18,
    ]


@pytest.mark.parametrize("sharding", ["replicated", "vectors", "params"])
def test_the_abstract_update_is_the_update_on_arrays(sharding):
    config = load(ROOT / HF, ["--batch-size", "784", "--sharding", sharding])
    examples = readable(config.data.examples("train"))
    mesh = hfdist.make_mesh(4)
    with jax.enable_x64(False):
        step, arguments = one_update(config, examples, mesh)
        abstract, shapes = abstract_update(config, examples, mesh, config.batch_size)
        expected = jax.eval_shape(lambda *a: a, *arguments)
        given = jax.eval_shape(lambda *a: a, *shapes)
        assert str(given) == str(expected)
        assert str(jax.eval_shape(step, *arguments)) == str(
            jax.eval_shape(abstract, *shapes)
        )


def run_command(monkeypatch, *arguments):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["comms.py", *arguments])
    return comms.main()


def test_the_command_says_all(monkeypatch, capsys):
    monkeypatch.setattr(comms, "compile_step", lambda *_: STEP)
    arguments = [HF, "--gpus", "4x8", "--cg-steps", "3", "--batch-size", "64"]
    assert run_command(monkeypatch, *arguments) == 0
    shown = capsys.readouterr().out
    assert "4 host(s) of 8 H100 SXM, 2 examples on each GPU" in shown
    assert "136 bytes in a step" in shown  # 40, and 3 times 32
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" in shown
    assert "A step: " in shown
    assert run_command(monkeypatch, *arguments, "--json", "--card", "A100") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["config"], said["card"]) == (HF, "A100 SXM 80GB")
    assert said["memory"][0]["fits"]
    assert [row["place"] for row in said["collectives"]] == [ONCE, CG_STEP, SOME_STEPS]
    assert said["bandwidth_gb_per_s"] == 25
    assert said["step_ms"] < said["step_with_all_branches_ms"]


def test_a_failed_compilation_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu_compiler, "interpreter", lambda: "false")
    assert run_command(monkeypatch, HF, "--gpus", "1x8") == 2
    assert "XLA cannot compile this step for 1x8 H100" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(gpu_compiler, "find_spec", lambda _: None)
    monkeypatch.setattr(gpu_compiler, "ENVIRONMENT", tmp_path)
    assert run_command(monkeypatch, HF, "--gpus", "1x8") == 2
    assert "run `make setup-gpu-compile`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([HF, "--gpus", "8"], "--gpus is 8: give hosts and GPUs of each"),
        ([HF, "--gpus", "0x8"], "such as 1x8 or 128x8"),
        ([HF, "--gpus", "1x7"], "batch_size 64 cannot be split evenly over 7 devices"),
        ([HF, "--gpus", "1x8", "--card", "V100"], "use one of A100, H100, H200, B200"),
        (
            [HF, "--gpus", "1x8", "--efficiency", "2"],
            "use 1, its peaks, or less",
        ),
        ([HF, "--gpus", "1x8", "--efficiency", "-1"], "--efficiency is -1"),
        ([HF, "--gpus", "1x8", "--product-ms", "3"], "--product-ms is for --devices"),
        ([HF, "--devices", "4", "--card", "H100"], "are for --gpus: leave them out"),
        ([SGD, "--gpus", "1x8", "--cg-steps", "3"], "SGD takes no CG steps"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    arguments, message, monkeypatch, capsys
):
    assert run_command(monkeypatch, *arguments) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not said.out


def sent(hlo):
    """(number, bytes) of each kind of collective at each place."""
    count, nbytes = Counter(), Counter()
    for kind, n, *place in collectives_of(hlo):
        count[kind, *place] += 1
        nbytes[kind, *place] += n
    return count, nbytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "overrides"),
    [
        (HF, ["--batch-size", "784"]),
        (HF, []),  # in the span of the inputs
        ("configs/mnist/autoencoder_kronecker.py", []),
    ],
)
def test_gpus_are_sent_no_more_than_cpus(path, overrides):
    try:
        gpu_compiler.interpreter()
    except UsageError as error:
        pytest.skip(str(error))
    step = compile_step(ROOT / path, overrides, "1x4", "H100")
    config = load(ROOT / path, overrides)
    with jax.enable_x64(False):
        mesh = hfdist.make_mesh(4)
        examples = readable(config.data.examples("train"))
        update, arguments = one_update(replace(config, devices=4), examples, mesh)
        text = jax.jit(update).lower(*arguments).compile().as_text()
    for ours, theirs in zip(sent(step.programs[0].hlo), sent(text), strict=True):
        assert ours
        assert ours <= theirs
    assert np.all([n >= 0 for n in step.programs[0].memory.values()])
    assert parse(step.programs[0].hlo).entry
