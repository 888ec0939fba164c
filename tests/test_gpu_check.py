"""The check of GPUs: its parts, its report, and that nothing that fails takes more
with it than itself."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import jax
import numpy as np
import pytest

import gpu
from benchmarks.step import example
from communication.cost import Link, ring_seconds
from gpu_check import budget, collectives, job, kills, numerics, paper, process, record
from gpu_check.page import page
from gpu_check.part import ROOT, Skipped, Work
from hfdist.errors import UsageError
from together import children_of, clean_environment, start, wait_for

ENVIRONMENT = [
    {"what": "platform", "value": "gpu"},
    {"what": "device", "value": "H"},
    {"what": "devices", "value": 1},
    {"what": "machine", "value": "H"},
]
# What stands for the parts: scripts that say what they say in their folder.
SAY = """
import json, os, sys, time
def say(**what):
    with open('said.jsonl', 'a') as file:
        print(json.dumps(what), file=file)
"""
WELL = "say(row={'x': 1, 'ok': True}); say(note='Well.')"


@pytest.fixture
def scripts(monkeypatch):
    """Scripts by the names of parts, run in their place; WELL for what has none."""
    given = {"environment": f"for row in {ENVIRONMENT}: say(row=row)"}

    def command(name, folder, deadline, quick):
        return [sys.executable, "-S", "-c", SAY + given.get(name, WELL)]

    monkeypatch.setattr(process, "command", command)
    return given


def check(out, *arguments):
    """(exit code, what gpu.json holds, gpu.md)."""
    given = ["gpu.py", "--out", str(out), "--commit", "c1", "--json", *arguments]
    before, sys.argv = sys.argv, given
    try:
        code = gpu.main()
    finally:
        sys.argv = before
    if not (out / "gpu.json").exists():
        return code, None, None
    held = json.loads((out / "gpu.json").read_text())
    return code, held, (out / "gpu.md").read_text()


def verdicts(held):
    return {name: (one["verdict"], one["why"]) for name, one in held["parts"].items()}


def test_every_part_is_run_and_reported(scripts, tmp_path, capsys):
    scripts["collectives"] = "say(skipped='one device')"
    code, held, text = check(tmp_path)
    assert code == 0
    expected = dict.fromkeys(budget.SECONDS, ("passed", ""))
    assert verdicts(held) == expected | {"collectives": ("skipped", "one device")}
    assert json.loads(capsys.readouterr().out) == held
    assert text.startswith("# H\n\n`python tools/gpu.py` at commit c1.\n")
    assert "| kills | passed | 0 |  |" in text
    assert "## numerics\n\n**Errors of float32" in text
    assert "| x | ok |\n|---|---|\n| 1 | yes |\n\nWell.\n" in text
    assert "## collectives" not in text  # it said nothing
    assert {path.name for path in tmp_path.iterdir()} == {
        "gpu.json",
        "gpu.md",
        "gpu.log",
    }


BROKEN = {
    "raises": (
        "say(row={'x': 7}); say(error='ValueError: so'); sys.exit(1)",
        "ValueError: so",
    ),
    "crashes": (
        "say(row={'x': 7}); print('F0000 no'); sys.stdout.flush(); os.abort()",
        "ended by SIGABRT: F0000 no",
    ),
    "hangs": ("say(row={'x': 7}); time.sleep(60)", "stopped at its limit of 0 s"),
    "is wrong": (
        "say(row={'x': 7}); say(row={'x': 'a|b', 'ok': False})",
        "1 of 1 checks: a|b",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_part_that_fails_is_one_line_and_the_rest_goes_on(
    scripts, tmp_path, monkeypatch, how
):
    scripts["numerics"], why = BROKEN[how]
    if how == "hangs":
        monkeypatch.setattr(
            job, "share", lambda names, left: 0.3 if names[0] == "numerics" else 30
        )
    code, held, text = check(tmp_path)
    assert code == 1
    expected = dict.fromkeys(budget.SECONDS, ("passed", ""))
    assert verdicts(held) == expected | {"numerics": ("failed", why)}
    assert held["parts"]["numerics"]["rows"][0] == {"x": 7}  # from before it
    (line,) = [x for x in text.splitlines() if x.startswith("| numerics |")]
    assert line.endswith(f"| {why.replace('|', chr(92) + '|')} |")


def test_a_second_call_does_what_is_missing_or_failed(scripts, tmp_path):
    scripts["numerics"] = "sys.exit(3)"
    assert check(tmp_path)[0] == 1
    before = check(tmp_path)[1]
    assert verdicts(before)["numerics"] == ("failed", "exit code 3")
    del scripts["numerics"]
    scripts["paper"] = scripts["kills"] = "say(note='anew')"
    code, held, _ = check(tmp_path, "--again", "paper", "--commit", "c2")
    assert code == 0
    anew = {name for name, one in held["parts"].items() if one["commit"] == "c2"}
    assert anew == {"environment", "numerics", "paper"}
    scripts["environment"] = "sys.exit(1)"  # nothing is run
    assert check(tmp_path)[:2] == (0, held)


def test_parts_of_two_machines_or_sizes_are_not_mixed(scripts, tmp_path, capsys):
    scripts["kills"] = "sys.exit(1)"
    held = check(tmp_path)[1]
    scripts["environment"] = scripts["environment"].replace("'H'", "'A'")
    assert check(tmp_path)[:2] == (2, held)
    assert "another machine (device H there, A here)" in capsys.readouterr().err
    assert check(tmp_path, "--quick")[:2] == (2, held)
    assert "a check without --quick" in capsys.readouterr().err


def test_a_gpu_that_jax_passes_over_ends_the_check(scripts, tmp_path, capsys):
    cpu = [{"what": "nvidia-smi", "value": "GPU 0"}, *ENVIRONMENT]
    text = f"for row in {cpu}: say(row=row)".replace("'gpu'", "'cpu'")
    scripts["environment"] = text
    assert check(tmp_path)[0] == 2
    assert "JAX sees none: install" in capsys.readouterr().err
    asked = {"what": "JAX_PLATFORMS", "value": "cpu"}
    scripts["environment"] = f"{text}; say(row={asked})"
    assert check(tmp_path)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--minutes", "0"), "--minutes is 0: use a number above 0"),
        (("--minutes", "nan"), "use a number above 0"),
        (("--again", "numeric"), "perhaps 'numerics'"),
        (("--out", "/dev/null/x"), "give another --out"),
    ],
)
def test_mistakes_are_one_line(scripts, tmp_path, capsys, arguments, complaint):
    assert check(tmp_path, *arguments)[0] == 2
    said = capsys.readouterr().err
    assert said.startswith("gpu: ")
    assert complaint in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("text", ["", "[]", '{"quick": false, "parts": {"x": 1}}'])
def test_a_damaged_record_is_left_alone(scripts, tmp_path, capsys, text):
    (tmp_path / "gpu.json").write_text(text)
    with pytest.raises(UsageError, match="no record of this tool"):
        record.read(tmp_path, quick=False)


def test_what_is_not_installed_is_named_before_anything_is_run(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(gpu, "lacking", lambda: ["grain", "tyro"])
    assert check(tmp_path)[0] == 2
    assert "gpu: grain, tyro not installed here" in capsys.readouterr().err


def test_here_nothing_is_lacking_and_what_would_be_is_found(tmp_path, monkeypatch):
    from gpu_check import packages

    assert packages.lacking() == []
    monkeypatch.setattr(packages, "ROOT", tmp_path)
    text = '[project]\nname = "hfdist"\ndependencies = ["no-such>=1", "numpy>=2"]\n'
    (tmp_path / "pyproject.toml").write_text(text)
    assert packages.lacking() == ["no-such"]


def test_the_minutes_are_shared_out():
    names = list(budget.SECONDS)
    whole = sum(budget.SECONDS.values())
    assert whole == 480
    assert budget.share(names, whole) == budget.SECONDS[names[0]]
    # What one leaves goes to those after it.
    assert budget.share(names[-2:], 270) == pytest.approx(80)
    # The last go first; at half their seconds they stay.
    assert budget.share(["numerics", "kills"], 100) == pytest.approx(52.5)
    assert budget.share(["numerics", "kills"], 99) == pytest.approx(99)
    assert budget.share(["kills"], 47) is None


def test_what_no_longer_fits_is_not_run(scripts, tmp_path):
    code, held, _ = check(tmp_path, "--minutes", "0.42")
    assert code == 1
    expected = dict.fromkeys(budget.SECONDS, ("not run", "time"))
    short = ("environment", "collectives", "memory")
    assert verdicts(held) == expected | dict.fromkeys(short, ("passed", ""))
    assert check(tmp_path)[0] == 0


ENDLESS = """
import sys
from gpu_check import job, process
part = "import subprocess, time; p = subprocess.Popen(['sleep', '99']); \
open('pid', 'w').write(str(p.pid)); time.sleep(99)"
process.command = lambda *_: [sys.executable, "-S", "-c", part]
sys.exit(job.main())
"""


def is_gone(pid):
    """Whether a process has ended, if only its parent's word for it is missing."""
    try:
        return b") Z " in open(f"/proc/{pid}/stat", "rb").read()
    except FileNotFoundError:
        return True


def test_a_signal_ends_all_that_was_started(tmp_path):
    folder = ROOT / "tools"
    env = {"PYTHONPATH": f"{ROOT}:{folder}"}
    command = [sys.executable, "-c", ENDLESS, "--out", tmp_path / "out"]
    stopped = start(*command, **env)
    pid = tmp_path / "out" / "work" / "environment" / "pid"
    wait_for(lambda: pid.exists() and pid.read_text())
    sleeper = int(pid.read_text())
    stopped.send_signal(signal.SIGTERM)
    said = stopped.communicate(timeout=30)[0]
    assert stopped.returncode == 75
    assert said == "gpu: SIGTERM: the same command goes on\n"
    wait_for(lambda: is_gone(sleeper))
    assert not pid.parent.parent.exists()


def numbers(precision, cg, ms, network="n"):
    return {"network": network, "precision": precision, "CG": cg, "CG ms": ms}


def default_of(*rows):
    return numerics.default(list(rows))


def test_the_default_is_the_fastest_that_is_near():
    highest = numbers("highest", 1e-6, 10.0)
    assert default_of(highest, numbers("high", 9e-6, 5.0)) == "high"
    assert default_of(highest, numbers("high", 1.1e-5, 5.0)) == "highest"
    assert default_of(highest, numbers("high", 1e-6, 9.6)) == "highest"
    assert default_of(highest, numbers("high", float("nan"), 1.0)) == "highest"
    # Near on one network and not on the other; times are those of the last.
    two = numbers("highest", 1e-6, 10.0, "m"), numbers("high", 1e-3, 1.0, "m")
    assert default_of(*two, highest, numbers("high", 1e-6, 5.0)) == "highest"


def test_errors_are_those_of_float32():
    tiny = numerics.Case("tiny", (4,), 10, 8, dense=True)
    (row,) = numerics._rows(tiny, ("highest",))
    assert row["ok"]
    names = ("gradient", "gauss_newton", "hessian", "CG", "dense")
    assert all(1e-9 < row[name] < 1e-5 for name in names)
    assert numerics.error(np.array([3.0, 0.0]), np.array([3.0, 4.0])) == 0.8


def test_a_precision_reaches_the_products():
    problem, params, batch = example((4,), 10, 8)
    trace = partial(numerics._quantities.trace, problem, True, params, batch, params)

    def products(precision):
        with jax.default_matmul_precision(precision):  # as of a GPU: there are none
            return trace().lower(lowering_platforms=("cuda",)).as_text()

    assert "[DEFAULT" not in products("highest")
    assert products("default").count("[DEFAULT") > 20
    assert products(*numerics.ON_GPUS).count("num_primitive_operations = 3") > 20


def test_a_precision_that_is_not_there_is_a_failure_of_its_own():
    tiny = numerics.Case("tiny", (4,), 10, 8, dense=False)
    unknown, highest = numerics._rows(tiny, ("unknown", "highest"))
    assert not unknown["ok"]
    assert unknown["failure"].startswith("ValueError")
    assert highest["ok"]


def lines(losses, accepted=True):
    return [
        {"loss": loss, "accepted": accepted, "seconds": 0.5 * i, "compile_seconds": 2.0}
        for i, loss in enumerate(losses, 1)
    ]


def test_a_run_is_well_if_its_losses_are_finite_and_fall():
    run = paper.Run("sgd", 4)
    row = paper.judged(run, lines([3.0, 4.0, 2.0, 1.0]), 0)
    assert row["ok"]
    assert (row["first losses"], row["last losses"], row["ms a step"]) == (3, 1, 500)
    assert not paper.judged(run, lines([1.0, 2.0, 3.0, 4.0]), 0)["ok"]
    assert not paper.judged(run, lines([3.0, float("nan"), 2.0, float("nan")]), 0)["ok"]
    assert not paper.judged(run, lines([3.0, 1.0]), 1)["ok"]
    assert not paper.judged(run, [], 0)["ok"]
    newton = paper.Run("newton", 2, sign="ends")
    assert paper.judged(newton, lines([2.0, 2.5], accepted=False), 3)["ok"]
    assert not paper.judged(newton, lines([2.0, 2.5]), 1)["ok"]
    unreduced = paper.Run("damped_newton", 2, paper.UNREDUCED, "same")
    assert paper.judged(unreduced, lines([2.0, 2.5]), 0)["ok"]
    assert not paper.judged(unreduced, lines([2.0, float("inf")]), 0)["ok"]


def test_norms_of_the_same_steps_are_compared():
    assert paper.apart([2.0, 4.0], [2.0, 5.0, 9.0]) == pytest.approx(0.2)
    assert paper.apart([2.0], []) == float("inf")


def test_a_ring_is_found_again_from_its_times():
    link = Link(bandwidth=3e10, latency=2e-5)
    sizes = [400, 4000, 400_000, 40_000_000]
    points = [(n, ring_seconds("all-reduce", n, 4, link)) for n in sizes]
    assert collectives.fitted(points, 4) == pytest.approx(link)


def test_sums_over_four_devices_are_right():
    *rows, note = collectives.measure(Work(ROOT, True, 0.0))
    assert all(row["ok"] for row in rows[: collectives.FEW])
    assert [row["floats"] for row in rows] == 2 * [100, 1000, 10_000]
    assert all(row["measured / ring"] > 0 for row in rows[collectives.FEW :])
    assert "over 4 devices" in note


def test_one_device_has_nobody_to_sum_with(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    with pytest.raises(Skipped, match="one device"):
        next(collectives.measure(Work(ROOT, True, 0.0)))


def test_kills_are_seeded_and_spread_over_the_run():
    found = kills.targets(10, 1000)
    assert found == kills.targets(10, 1000)
    steps = [step for step, _ in found]
    assert steps == sorted(set(steps))
    assert steps[0] < 300 < 700 < steps[-1] < 1000


def test_rows_of_many_kinds_are_one_table():
    rows = [{"a": 1234, "b": 0.00012345}, {"a": 12345.6, "c": None}, {"c": False}]
    part = {"verdict": "passed", "why": "", "seconds": 1.6, "commit": "c1"}
    parts = {"kills": part | {"rows": rows, "notes": ["End."]}}
    text = page({"quick": True, "parts": parts})
    assert "> **Quick run" in text
    assert "| kills | passed | 2 |  |" in text
    head = "| a | b | c |\n|---|---|---|\n"
    table = head + "| 1,234 | 0.000123 |  |\n| 12,346 |  |  |\n|  |  | no |"
    assert f"{table}\n\nEnd.\n" in text


@pytest.mark.slow
def test_the_whole_of_it_on_this_cpu(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "tools/gpu.py", "--quick", "--json", "--out", str(out)]
    home = tmp_path / "home"
    home.mkdir()
    env = clean_environment() | {"HOME": str(home), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    held = json.loads(done.stdout)
    skipped = {n for n, (verdict, _) in verdicts(held).items() if verdict == "skipped"}
    assert skipped == {"collectives", "memory"}
    assert held["parts"]["kills"]["rows"][1]["run"] == "killed 2 of 2 times"
    assert {path.name for path in out.iterdir()} == {"gpu.json", "gpu.md", "gpu.log"}
    assert not list(home.iterdir())  # nothing is written anywhere else
    began = time.monotonic()
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert json.loads(again.stdout) == held
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_a_part_ends_with_a_check_that_was_killed(tmp_path):
    command = [sys.executable, "tools/gpu.py", "--quick", "--out", tmp_path]
    killed = start(*command, JAX_PLATFORMS="cpu")
    said = tmp_path / "work" / "numerics" / "said.jsonl"
    wait_for(said.exists)
    (part,) = children_of(killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=30)
    wait_for(lambda: is_gone(part))
