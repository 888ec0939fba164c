"""A run directory obeys one master, loses nothing, and is trusted with nothing."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import closing

import jax.numpy as jnp
import pytest

import idx_files
from hfdist import UsageError
from hfdist.__main__ import main
from hfdist.runs import metrics, resume, run_lock
from hfdist.runs.checkpoint import Checkpoints, Unsound
from hfdist.runs.files import replace_text
from hfdist.runs.saver import Saver
from quick import mostly_slow
from together import ROOT, clean_environment

SGD = str(ROOT / "configs/paper/sgd.py")
ENV = clean_environment()


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    data = idx_files.make_folder(tmp_path_factory.mktemp("data"))
    return f"--data.dir {data} --data.classes 3 --batch-size 16".split()


@pytest.fixture
def hfdist(monkeypatch, capsys):
    """hfdist in this process, where a traceback would be an exception."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hfdist", *map(str, arguments)])
        code = main()
        return code, "".join(capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, settings):
    """A run of 14 steps with the checkpoints 7 and 14; to copy."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    command = [sys.executable, "-m", "hfdist", "train", SGD, *settings]
    command += ["--epochs", "2", "--checkpoint-steps", "7", "--run-dir", str(run_dir)]
    command += ["--steps-per-dispatch", "7"]
    subprocess.run(command, env=ENV, check=True, capture_output=True)
    return run_dir


@pytest.fixture
def again(hfdist, finished, settings, tmp_path):
    """Continue a copy of the finished run: what came of it, and if lines were lost."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)

    def run(*more):
        arguments = [*settings, "--epochs", 3, "--steps-per-dispatch", 7, *more]
        return hfdist("train", SGD, *arguments, "--run-dir", run_dir)

    return run, run_dir


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("config.json", "lock")
    }


def test_the_copy_continues(again):
    run, run_dir = again
    code, shown = run()
    assert code == 0, shown
    assert [x["step"] for x in metrics.read(run_dir) if x["split"] == "train"] == list(
        range(1, 22)
    )


def test_another_config_is_refused(again):
    run, run_dir = again
    before = contents(run_dir)
    code, shown = run("--method.learning-rate", 2, "--seed", 1)
    assert code == 2
    assert "method.learning_rate was 0.1, now 2.0; seed was 0, now 1" in shown
    assert contents(run_dir) == before


def test_a_missing_checkpoint_is_named(hfdist, finished):
    code, shown = hfdist("evaluate", finished, "--step", 5)
    assert code == 2
    assert "no checkpoint of step 5; its steps are [7, 14]" in shown


@pytest.mark.parametrize("run", [["x"] * 1000, "x" * 10**5, None, 3, {}])
def test_an_odd_identity_is_one_short_message(hfdist, finished, tmp_path, run):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"run": run}))
    code, said = hfdist("evaluate", tmp_path / "run")
    assert (code, said.count("hfdist: "), len(said) < 500) == (2, 1, True), said


def remove_checkpoints(run_dir):
    shutil.rmtree(run_dir / "checkpoints")


def empty_checkpoints(run_dir):
    for step in (7, 14):
        shutil.rmtree(run_dir / "checkpoints" / str(step))


def spoil_all(run_dir):
    for path in run_dir.glob("checkpoints/*/record/metadata"):
        path.write_text(path.read_text().replace("float32", "float64"))


def rename(run_dir):
    (run_dir / "checkpoints/14").rename(run_dir / "checkpoints/15")


def of_another_run(run_dir):
    for path in run_dir.glob("config.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"run": "another"}))


def shift(run_dir):
    path = run_dir / "metrics.jsonl"
    path.write_text("\n" + path.read_text())


def spoil_a_line(run_dir):
    path = run_dir / "metrics.jsonl"
    path.write_text(path.read_text().replace('"step": 3,', '"step": x,', 1))


def make_folder(run_dir):
    (run_dir / "metrics.jsonl").unlink()
    (run_dir / "metrics.jsonl").mkdir()


def remove_metrics(run_dir):
    (run_dir / "metrics.jsonl").unlink()


def pipe(run_dir):
    (run_dir / "metrics.jsonl").unlink()
    os.mkfifo(run_dir / "metrics.jsonl")


HARM = {
    remove_checkpoints: r"has no checkpoint, though this run has saved\. Nothing was",
    empty_checkpoints: r"has no checkpoint, though this run has saved\. Nothing was",
    spoil_all: r"no sound checkpoint to use: .* 14 is unsound: .* 7 is uns.*\. Nothing",
    rename: r"checkpoint 15 in .* is that of step 14: give it back its name",
    of_another_run: r"checkpoint 14 in .* is of another run \(.*, and this is 'ano",
    shift: r"metrics.jsonl has no end of a line at byte [\d,]+, where",
    spoil_a_line: r"metrics.jsonl is damaged: line 3 is no line of metrics",
    make_folder: r"metrics.jsonl cannot be read \(it is not a file\)",
    remove_metrics: r"metrics.jsonl has only 0 of the [\d,]+ bytes",
    pipe: r"metrics.jsonl cannot be read \(it is not a file\)",
}


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__)
def test_what_cannot_be_continued_is_refused_and_nothing_is_lost(again, harm):
    run, run_dir = again
    harm(run_dir)
    before = contents(run_dir)
    code, shown = run()
    assert code == 2
    assert re.search(HARM[harm], shown), shown
    assert contents(run_dir) == before


def test_lines_that_no_checkpoint_stands_for_are_kept(tmp_path):
    """A run killed before its first save begins again."""
    (tmp_path / "metrics.jsonl").write_text("lines\n")
    metrics.MetricsFile(tmp_path, 0).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    (kept,) = (tmp_path / "unsound").iterdir()
    assert kept.read_text() == "lines\n"


def test_metrics_deleted_while_they_are_written(tmp_path):
    file = metrics.MetricsFile(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    for use in (lambda: file.append([]), file.sync):
        with pytest.raises(UsageError, match=r"cannot be written \(No such file"):
            use()
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UsageError, match="another file has taken its place"):
        file.sync()


STATE = {
    "params": {"w": jnp.arange(3000, dtype="float32")},
    "optimizer": {"count": jnp.int32(4)},
}


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of the steps 5 and 6."""
    folder = tmp_path / "checkpoints"
    with closing(Saver(folder, "a run")) as saver:
        for step in (5, 6):
            saver.save(step, **STATE, record={"step": step, "metrics_bytes": 0})
    return Checkpoints(folder, "a run")


def restore(checkpoints):
    carry = STATE["params"], STATE["optimizer"]
    return resume.restore_newest(checkpoints, lambda _: carry, saved=True)[0].step


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, os.strerror(errno.EIO)),
        OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
        ValueError(f'Failed to open: "d/22ff": {os.strerror(errno.EIO)} [code=5]'),
    ],
)
def test_a_disk_out_of_reach_is_given_time(saved, monkeypatch, capsys, error):
    failures = iter([error, error])
    read = saved._reader.restore

    def fail_twice(*arguments, **more):
        for failure in failures:
            raise Exception("Orbax's own") from failure
        return read(*arguments, **more)

    monkeypatch.setattr(saved._reader, "restore", fail_twice)
    monkeypatch.setattr(resume, "PATIENCE", (0.0, 0.0))
    assert restore(saved) == 6
    assert capsys.readouterr().err.count("cannot be read") == 2
    failures = iter([error] * 3)
    with pytest.raises(UsageError, match=r"checkpoint 6 .* cannot be read .*: nothing"):
        restore(saved)
    assert saved.steps() == [5, 6]
    assert not (saved.folder.parent / "unsound").exists()


STRACE = "strace -f -qq -o /dev/null -P {path} -e inject=openat:error=EIO"
PROBE = """
import sys
from pathlib import Path
import jax.numpy as jnp
from hfdist.runs import resume
from hfdist.runs.checkpoint import Checkpoints, Unsound
resume.PATIENCE = (0.0,)
state = {"w": jnp.arange(3000.0)}, {"count": jnp.int32(4)}
try:
    checkpoints = Checkpoints(Path(sys.argv[1]), "a run")
    resume.restore_newest(checkpoints, lambda _: state, True)
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.parametrize(
    "part",
    mostly_slow(["params/d/*", "record/metadata", "params/_METADATA"], ["params/d/*"]),
)
def test_a_real_reading_error_moves_nothing(saved, part):
    (path,) = (saved.folder / "6").glob(part)
    command = [*STRACE.format(path=path).split(), sys.executable, "-c", PROBE]
    done = subprocess.run(
        [*command, saved.folder], env=ENV, capture_output=True, text=True
    )
    assert re.search(r"checkpoint 6 .* \(.*Input/output error\): nothing", done.stdout)
    assert saved.steps() == [5, 6]


@pytest.mark.parametrize(
    "place", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")]
)
@pytest.mark.parametrize("part", ["record/metadata", "params/manifest.ocdbt"])
def test_no_link_and_no_pipe_is_read(saved, capsys, part, place):
    path = saved.folder / "6" / part
    path.unlink()
    place(path)
    with pytest.raises(Unsound, match=f"{path.name} is neither a file nor a folder"):
        saved.verify(6)
    assert restore(saved) == 5
    assert "neither a file nor a folder" in capsys.readouterr().err


def test_another_structure_is_no_damage(saved):
    other = {"w": jnp.zeros(2)}, STATE["optimizer"]
    with pytest.raises(UsageError, match=r"params.w is float32\[3000\], not .*\[2\]"):
        resume.restore_newest(saved, lambda _: other, saved=True)
    more = {**STATE["params"], "b": jnp.zeros(2)}, STATE["optimizer"]
    with pytest.raises(UsageError, match=r"params.b is not there, not float64\[2\]"):
        resume.restore_newest(saved, lambda _: more, saved=True)
    assert saved.steps() == [5, 6]


HOLDER = """
import sys, time
from pathlib import Path
from hfdist.runs.run_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path],
        env=ENV,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def check_held(run_dir, holder):
    with (
        pytest.raises(UsageError, match=rf"in use by process {holder.pid} on "),
        run_lock.locked(run_dir),
    ):
        pass


def test_a_lock_is_of_one_process_and_ends_with_it(holder, tmp_path):
    check_held(tmp_path, holder)
    holder.kill()
    holder.wait()
    with run_lock.locked(tmp_path):
        pass


def test_a_heartbeat_decides_between_machines(holder, tmp_path, monkeypatch):
    """As on a file system without locks, seen from a machine with another name."""
    monkeypatch.setattr(run_lock.fcntl, "flock", no_locks)
    monkeypatch.setattr(run_lock, "_machine", lambda: "another")
    check_held(tmp_path, holder)
    holder.kill()
    holder.wait()
    monkeypatch.setattr(run_lock, "SILENT", 3.0)
    began = time.monotonic()
    with run_lock.locked(tmp_path):
        assert time.monotonic() - began >= 3


def no_locks(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_who_was_given_up_ends(holder, tmp_path):
    other = {"host": "h", "process": 1, "machine": "m", "token": "t", "beat": 0}
    (tmp_path / "lock").write_text(json.dumps(other).ljust(500))
    assert holder.wait(timeout=10) == 2


def test_a_second_command_is_refused(again, hfdist):
    run, run_dir = again
    with run_lock.locked(run_dir):
        before = contents(run_dir)
        code, shown = run()
    assert code == 2
    assert f"in use by process {os.getpid()} on " in shown
    assert contents(run_dir) == before
    assert hfdist("checkpoints", run_dir)[0] == 0


def test_runs_of_one_second_get_folders_of_their_own(
    hfdist, settings, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20261124-120000")
    for _ in range(2):
        assert hfdist("train", SGD, *settings, "--max-steps", 1)[0] == 0
    names = sorted(folder.name for folder in (tmp_path / "runs").iterdir())
    assert names == ["sgd-20261124-120000", "sgd-20261124-120000-2"]


@pytest.mark.parametrize("name", ["config.json", "lock", "metrics.jsonl"])
def test_a_link_is_not_followed(hfdist, settings, tmp_path, name):
    precious, run_dir = tmp_path / "precious", tmp_path / "run"
    precious.write_text("precious")
    run_dir.mkdir()
    (run_dir / name).symlink_to(precious)
    for part in (".part", "-"):
        (run_dir / f"config.json{part}").symlink_to(precious)
    code, shown = hfdist("train", SGD, *settings, "--run-dir", run_dir)
    assert code == 2, shown
    assert "cannot be" in shown
    assert precious.read_text() == "precious"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    replace_text(path, "old")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        replace_text(path, "new")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


CROPPED = """
from dataclasses import dataclass
from hfdist import SGD
from hfdist.runs.config import Config
from hfdist.tasks.examples import Arrays
from hfdist.tasks.idx import IDX

@dataclass(frozen=True, kw_only=True)
class Cropped(IDX):
    def examples(self, split):
        entries = super().examples(split).entries
        features = 16 if split == "train" else 9
        return Arrays(entries | {"inputs": entries["inputs"][:, :features]})

config = Config(method=SGD(), data=Cropped())
"""


def test_test_examples_of_another_size_are_refused_at_once(hfdist, settings, tmp_path):
    (tmp_path / "cropped.py").write_text(CROPPED)
    run = [tmp_path / "cropped.py", *settings, "--run-dir", tmp_path / "run"]
    code, shown = hfdist("train", *run)
    assert (
        code,
        bool(re.search(r"has inputs of shape \(16,\) .* \(9,\):", shown)),
    ) == (2, True), shown
    assert not (tmp_path / "run").exists()


def test_init_from_is_checked_before_there_is_a_folder(
    hfdist, finished, settings, tmp_path, monkeypatch
):
    run = ["train", SGD, *settings, "--max-steps", 1, "--run-dir", tmp_path / "run"]
    for source in ("nowhere", tmp_path):
        code, shown = hfdist(*run, "--init-from", source)
        assert (code, "is not a run directory" in shown) == (2, True), shown
        assert not (tmp_path / "run").exists()
    code, shown = hfdist(*run, "--init-from", finished, "--model.hidden", 3)
    assert code == 2
    assert "does not fit this config: params." in shown
    assert not (tmp_path / "run").exists()
    assert hfdist(*run, "--init-from", finished)[0] == 0
    # The same place by another name.
    monkeypatch.chdir(finished.parent)
    code, shown = hfdist(*run, "--init-from", "run", "--max-steps", 2)
    assert code == 0, shown
