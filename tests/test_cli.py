"""The command line, as a person runs it: real processes, real files."""

import gzip
import json
import os
import pty
import re
import shutil
import subprocess
import sys

import pytest

import idx_files
from hfdist.__main__ import main
from together import ROOT, clean_environment

HF, SGD = "configs/paper/hf_gauss_newton.py", "configs/paper/sgd.py"
ENV = clean_environment()
GZIP = "hfdist/tasks/mnist/t10k-labels-idx1-ubyte.gz"
COMMAND = [sys.executable, "-m", "hfdist"]


def hfdist(*arguments):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=ROOT,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=300,
    )


def lines(run_dir, split="train"):
    text = (run_dir / "metrics.jsonl").read_text()
    return [x for x in map(json.loads, text.splitlines()) if x["split"] == split]


def without_seconds(line):
    return {name: v for name, v in line.items() if "seconds" not in name}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return idx_files.make_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture
def small(data, tmp_path):
    """Arguments for a quick run on a small data set, into tmp_path/run."""
    settings = f"--data.dir {data} --data.classes 3 --batch-size 16 --epochs 2"
    return [*settings.split(), "--run-dir", tmp_path / "run"]


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """The main job: 7 epochs of the paper's best method, once for several tests."""
    run_dir = tmp_path_factory.mktemp("baseline") / "run"
    return hfdist("train", HF, "--run-dir", run_dir), run_dir


def last_epoch_loss(run_dir):
    losses = [x["loss"] for x in lines(run_dir) if x["epoch"] == 7]
    assert len(losses) == 938
    return sum(losses) / len(losses)


def test_the_main_job_reproduces_the_paper(baseline):
    done, run_dir = baseline
    assert done.returncode == 0, done.stderr
    assert 0.20 <= last_epoch_loss(run_dir) <= 0.25
    tests = lines(run_dir, "test")
    assert [x["step"] for x in tests] == [938 * epoch for epoch in range(1, 8)]
    assert tests[-1]["accuracy"] >= 0.92
    assert tests[-1]["seconds"] < 30
    assert "epoch 7  step 6566" in done.stdout
    assert f"{tests[-1]['accuracy']:#.4g}" in done.stdout


def test_every_step_has_its_line(baseline):
    _, run_dir = baseline
    steps = lines(run_dir)
    assert [x["step"] for x in steps] == list(range(1, 6567))
    assert [x["epoch"] for x in steps[936:940]] == [1, 1, 2, 2]
    seconds = [x["seconds"] for x in steps]
    assert seconds == sorted(seconds)
    assert sum("compile_seconds" in x for x in steps) == 1
    assert all(x["accepted"] and x["damping"] == 4 for x in steps)
    assert 5 < sum(x["cg_steps"] for x in steps) / len(steps) < 7


def test_evaluate_repeats_the_runs_last_evaluation(baseline):
    _, run_dir = baseline
    done = hfdist("evaluate", run_dir)
    assert done.returncode == 0, done.stderr
    last = lines(run_dir, "test")[-1]
    assert f"{last['accuracy']:#.4g}" in done.stdout
    assert f"{last['loss']:#.4g}" in done.stdout


def test_config_json_has_everything_resolved(baseline):
    record = json.loads((baseline[1] / "config.json").read_text())
    assert record["config"]["method"]["cg"]["max_steps"] == 10
    assert record["config"]["data"]["classes"] == 10
    assert record["versions"]["jax"].count(".") == 2
    assert record["device"]["platform"] == "cpu"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "low", "high", "accuracy"),
    [("sgd", 0.20, 0.25, 0.92), ("hf_newton", 0.27, 0.33, 0.90)],
)
def test_the_other_baselines(tmp_path, name, low, high, accuracy):
    done = hfdist("train", f"configs/paper/{name}.py", "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert low <= last_epoch_loss(tmp_path / "run") <= high
    assert lines(tmp_path / "run", "test")[-1]["accuracy"] >= accuracy


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("damped_newton", 20), ("newton", 5)])
def test_the_full_dense_solve(tmp_path, name, steps):
    config = f"configs/paper/{name}.py"
    run_dir = tmp_path / "run"
    done = hfdist("train", config, "--max-steps", steps, "--run-dir", run_dir)
    assert done.returncode == 0, done.stderr
    made = lines(run_dir)
    assert len(made) == steps
    if name == "newton":
        # The Hessian is singular: pixels that are always 0.
        assert all(x["indefinite"] and not x["accepted"] for x in made)
        assert made[0]["step_norm"] == "nan"
    else:
        assert all(x["accepted"] for x in made)
        assert lines(run_dir, "test")[-1]["loss"] < made[0]["loss"]


def test_a_run_that_diverges_ends_with_3_and_says_so(small, tmp_path):
    arguments = ("--max-rejected", "3", "--model.hidden", "2", *small)
    done = hfdist("train", "configs/paper/newton.py", *arguments)
    assert done.returncode == 3
    assert "diverged: the last 3 or more updates were rejected" in done.stderr
    made = lines(tmp_path / "run")
    assert [x["accepted"] for x in made[-3:]] == [False] * 3
    assert len(made) < 14
    assert len(lines(tmp_path / "run", "test")) == 1


@pytest.mark.slow  # tests/test_resume.py has the quick ones
def test_a_run_continues_where_it_stopped(small, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "run"
    warm = ("--method.warm-start", "0.9", "--method.damping-rule=levenberg_marquardt")
    assert hfdist("train", HF, *small, *warm, "--run-dir", whole).returncode == 0
    for epochs in (1, 2):
        again = hfdist("train", HF, *small, *warm, "--epochs", epochs)
        assert again.returncode == 0, again.stderr
    for split in ("train", "test"):
        expected = [without_seconds(x) for x in lines(whole, split)]
        assert [without_seconds(x) for x in lines(parts, split)] == expected
    again = hfdist("train", HF, *small, *warm)  # nothing is left to do
    assert again.returncode == 0
    assert f"{lines(whole, 'test')[-1]['accuracy']:#.4g}" in again.stdout


def test_on_a_terminal_there_is_a_bar(small):
    """A pseudo-terminal stands in for a person's."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "train", HF, *map(str, small)],
        cwd=ROOT,
        env={**ENV, "TERM": "xterm", "COLUMNS": "120"},
        stdout=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"HessianFree .*14/14 steps +[\d,]+/s +loss \d\.\d{4} +ETA", text)
    assert "epoch 1" not in text


@pytest.mark.slow  # test_run_directory.py has a quick one
def test_without_a_run_dir_a_new_folder_is_made(small, tmp_path):
    arguments = [*COMMAND, "train", ROOT / HF, *small[:-2], "--max-steps", "1"]
    subprocess.run(map(str, arguments), cwd=tmp_path, env=ENV, check=True)
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"hf_gauss_newton-\d{8}-\d{6}", run_dir.name)


def test_a_profile_is_of_one_scan_and_changes_no_step(small, tmp_path, monkeypatch):
    """In this process: it is the quickest."""
    monkeypatch.chdir(ROOT)
    settings = [*small[:-2], "--steps-per-dispatch", "3"]
    for name, more in {"plain": [], "traced": ["--profile"]}.items():
        run = ["--run-dir", tmp_path / name, *more]
        monkeypatch.setattr(
            sys, "argv", ["hfdist", "train", SGD, *map(str, settings + run)]
        )
        assert main() == 0
    (trace,) = (tmp_path / "traced" / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert sum(x.get("name", "").startswith("while") for x in events) == 1
    plain, traced = (
        list(map(without_seconds, lines(tmp_path / d))) for d in ("plain", "traced")
    )
    assert traced == plain


# Config files that are none, by name.
CONFIGS = {
    "syntax.py": "config = Config(",
    "name.py": "config = HessianFre()",
    "exit.py": "raise SystemExit",
    "none.py": "x = 1",
    "other.py": "config = 3",
    "range.py": "import hfdist\nconfig = hfdist.SGD(learning_rate=0)",
    "newton.py": (
        "import hfdist\nfrom hfdist.runs.config import Config\n"
        "from hfdist.models.mlp import MLP\n"
        "config = Config(method=hfdist.Newton(), model=MLP(hidden=(1000, 500)))"
    ),
}

# What each mistake's message says, and the arguments that make it.
MISTAKES = {
    # an override that is unknown, of the wrong type, out of range
    r"Unrecognized options: --method.dampign.*--method.damping": (
        f"train {HF} --method.dampign 1"
    ),
    r"could not convert string to float: 'x'": f"train {HF} --method.damping x",
    r"epochs is 0: use at least 1": f"train {HF} --epochs 0",
    r"damping is -1.0: use a number": f"train {HF} --method.damping -1",
    r"invalid choice 'newton'": f"train {HF} --method.curvature newton",
    r"64 cannot be split evenly over 3": f"train {HF} --devices 3",
    r"batch_size is 70000 but .* 60000": f"train {HF} --batch-size 70000",
    r"undamped CG on the Hessian": (
        "train configs/paper/hf_newton.py --method.damping 0"
    ),
    # batches that grow, or are not all of the curvature's
    r"sizes rise from pair to pair": f"train {HF} --batch-growth 100 128 50 256",
    r"batch_growth is \(\(100, 64\),\), after batch_size 64": (
        f"train {HF} --batch-growth 100 64"
    ),
    r"batch_size after 1,000 updates is 70000 but": (
        f"train {HF} --batch-growth 1000 70000"
    ),
    r"batch_size 90 after 9 updates cannot be split evenly over 4": (
        f"train {HF} --batch-growth 9 90 --devices 4"
    ),
    r"3 of every 10 examples, .* taken evenly of the 64 that batch_size": (
        f"train {HF} --curvature-fraction 0.3"
    ),
    r"of the 17 that batch_size 68 after 9 updates gives each of 4": (
        f"train {HF} --curvature-fraction 0.5 --batch-growth 9 68 --devices 4"
    ),
    r"SGD has no curvature: leave it at 1": f"train {SGD} --curvature-fraction 0.5",
    # a config that is none
    r"config nowhere.py does not exist": "train nowhere.py",
    r"config configs does not exist or is not a file": "train configs",
    r"cannot be run as Python \(SyntaxError": "train TMP/syntax.py",
    r"cannot be run as Python \(NameError": "train TMP/name.py",
    r"cannot be run as Python \(SystemExit": "train TMP/exit.py",
    r"defines nothing as `config`: add": "train TMP/none.py",
    r"defines a int as `config`: add": "train TMP/other.py",
    r"learning_rate is 0: use a number": "train TMP/range.py",
    r"cannot be run as Python \(UnicodeDecodeError|null bytes": f"train {GZIP}",
    # data
    r"holds no file named train-images": f"train {HF} --data.dir configs",
    r"label 2 is outside 0 … 1: give": f"train {HF} --data.dir DATA --data.classes 2",
    r"cannot be read \(.*\): fetch": f"train {HF} --data.dir BROKEN",
    # the machine
    r"a dense solve in 570,510 unknowns need about 3,905": "train TMP/newton.py",
    r"--devices 64, but this machine has 4 cpu": f"train {HF} --devices 64",
    # run directories
    r"configs is not a run directory": "evaluate configs",
    r"configs is not a run directory: its": f"train {HF} --run-dir configs",
    r"cannot be written \(run: Not a direct": f"train {HF} --run-dir README.md/run",
    # commands
    r"invalid choice: 'trian'": f"trian {HF}",
    r"required: COMMAND": "",
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_gets_one_readable_message(
    tmp_path, data, message, monkeypatch, capsys
):
    """In this process, where a traceback would be an exception."""
    for name, text in CONFIGS.items():
        (tmp_path / name).write_text(text)
    shutil.copytree(data, tmp_path / "broken")
    (tmp_path / "broken" / "train-images-idx3-ubyte.gz").write_bytes(b"not gzip")
    arguments = MISTAKES[message].replace("BROKEN", str(tmp_path / "broken"))
    arguments = arguments.replace("TMP", str(tmp_path)).replace("DATA", str(data))
    if "train" in arguments and "--run-dir" not in arguments:
        arguments += f" --run-dir {tmp_path / 'run'}"
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["hfdist", *arguments.split()])
    try:
        code = main()
    except SystemExit as leaving:
        code = leaving.code
    shown = "".join(capsys.readouterr())
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", shown).split())
    assert re.search(message, shown), shown
    assert code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", HF, "--method.damping", "x"],
        ["train", "nowhere.py"],
        ["train", HF, "--data.dir", "configs"],
    ],
)
def test_a_mistake_ends_the_process_with_2_and_no_traceback(arguments, tmp_path):
    done = hfdist(*arguments, "--run-dir", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_run_directory_without_permission(small, tmp_path):
    tmp_path.chmod(0o500)
    done = hfdist("train", HF, *small)
    assert done.returncode == 2
    assert "Permission denied" in done.stderr


def test_help_lists_every_setting_with_its_meaning():
    shown = hfdist("train", HF, "--help").stdout
    for words in ("--method.cg.max-steps", "Damping λ", "--data.dir", "the paper's"):
        assert words in shown
    assert hfdist("--help").returncode == 0


@pytest.mark.slow
def test_evaluations_may_be_epochs_apart(tmp_path):
    """A whole batch: a step is an epoch, and scans go on from one to the next."""
    run = ["configs/table/diabetes.py", "--epochs", "25", "--evaluation-epochs", "10"]
    done = hfdist("train", *run, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(1, 26))
    assert [line["step"] for line in lines(tmp_path / "run", "test")] == [10, 20, 25]
