"""Runs of two real processes that share vectors out, each saving its part of them."""

import json
import random
import re
import signal
import sys
import time

import pytest

import idx_files
import together
from test_parts import change, remove
from test_processes import ends, free_port
from test_resume import HF, LM, finish, kill_and_continue, make_whole, wait_for_step
from together import run_together, train_losses
from toolkit.recorded import story

pytestmark = pytest.mark.slow

VECTORS = ["--sharding", "vectors"]
each_sharding = pytest.mark.parametrize("sharding", ["vectors", "params"])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return idx_files.make_folder(tmp_path_factory.mktemp("data"), train=1000)


@pytest.fixture
def arguments(data):
    """Of a run of 126 steps, saved after every 14 and at the end."""
    settings = (
        f"--data.dir {data} --data.classes 3 --batch-size 16 --epochs 2 --keep 9 "
        "--steps-per-dispatch 7 --checkpoint-steps 14 --checkpoint-minutes 1e9 "
        "--max-rejected 9999 --compilation-cache None"
    )
    vectors = [*LM.split(), "--method.step-rule", "two_term"]
    return [HF, *settings.split(), *vectors]


def start_pair(arguments, *programs, **env):
    """Two processes of a run, each by its program."""
    port = free_port()
    return [
        together.start(
            *programs[process],
            *("train", *arguments),
            HFDIST_COORDINATOR=f"localhost:{port}",
            HFDIST_NUM_PROCESSES="2",
            HFDIST_PROCESS_ID=str(process),
            **env,
        )
        for process in (0, 1)
    ]


HFDIST = [sys.executable, "-m", "hfdist"]
READS = """
import sys
from hfdist.__main__ import main
from hfdist.runs.parts import Piece
read, seen = Piece.read, []
Piece.read = lambda piece: seen.append(piece.size) or read(piece)
code = main()
print(sum(seen), "bytes of parts were read")
sys.exit(code)
"""


# Of the params all but a bias of 3, and two vectors like them.
HALVES = {
    "vectors": (["float32[46080] parts"] * 2, 2 * 4 * 46_080 // 2),
    "params": (
        [f"float32{shape} parts" for shape in ("[10]", "[16, 10]", "[10, 3]") * 3],
        3 * 4 * (10 + 16 * 10 + 10 * 3) // 2,
    ),
}


@pytest.mark.parametrize("sharding", HALVES)
def test_each_writes_and_reads_its_half(arguments, sharding, tmp_path):
    kinds, nbytes = HALVES[sharding]
    run = [*arguments, "--sharding", sharding, "--run-dir", tmp_path / "run"]
    assert finish([*run, "--max-steps", "28"], 2)[0] == 0
    folder = tmp_path / "run/checkpoints/28"
    first, second = (folder / "parts" / name for name in "01")
    record = json.loads((folder / "record/metadata").read_text())
    shared = [kind for kind in record["checksums"].values() if kind.endswith("parts")]
    assert sorted(shared) == sorted(kinds)
    assert first.stat().st_size == second.stat().st_size == nbytes
    codes, outputs = ends(start_pair(run, *2 * [[sys.executable, "-c", READS]]), 120)
    assert codes == [0, 0], outputs
    for output in outputs:
        assert f"{nbytes} bytes of parts were read" in output


# Processes, devices of each, sharding.
LAYOUTS = [
    (2, 1, "vectors"),
    (1, 1, "replicated"),
    (1, 2, "vectors"),
    (2, 1, "params"),
    (2, 2, "vectors"),
    (2, 2, "params"),
    (1, 2, "params"),
    (2, 1, "replicated"),
    (1, 4, "params"),
]


def test_a_run_goes_on_over_other_processes_that_share_otherwise(arguments, tmp_path):
    arguments = [*arguments, "--dtype", "float64", "--method.cg.max-steps", "3"]
    for count, (processes, devices, sharding) in enumerate(LAYOUTS, 1):
        layout = ["--devices", devices, "--sharding", sharding]
        until = ["--max-steps", 14 * count, "--run-dir", tmp_path / "run"]
        code, output = finish([*arguments, *layout, *until], processes)
        assert code == 0, output
    make_whole(tmp_path, [*arguments, "--max-steps", 14 * len(LAYOUTS)], 1)
    expected = train_losses(tmp_path / "whole")
    assert train_losses(tmp_path / "run") == pytest.approx(expected, rel=1e-9)
    assert len(expected) == 126


def test_a_shared_run_killed_again_and_again_equals_one_that_was_not(
    arguments, tmp_path
):
    kill_and_continue(tmp_path, [*arguments, *VECTORS], 2, kills=4, seed=0)


@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize("harm", [remove, change])
def test_damage_to_a_part_has_all_fall_back(arguments, tmp_path, harm, process):
    run = [*arguments, *VECTORS, "--run-dir", tmp_path / "run"]
    assert finish([*run, "--max-steps", "28"], 2)[0] == 0
    harm(tmp_path / f"run/checkpoints/28/parts/{process}")
    code, output = finish(run, 2)
    assert code == 0, output
    assert re.search("checkpoint 28 is unsound: .*: using step 14 instead", output)
    lines, *rest = story(tmp_path / "run")
    whole, *expected = make_whole(tmp_path, [*arguments, *VECTORS], 2)
    assert rest == expected
    assert lines == whole


def check_continues(tmp_path, run):
    """What was cut short goes on from a sound checkpoint, and ends as it would have."""
    ((_, shown),) = run_together([{}], "checkpoints", tmp_path / "run")
    assert " sound " in shown
    assert "unsound" not in shown
    code, output = finish([*run, "--run-dir", tmp_path / "run"], 2)
    assert code == 0, output
    whole, *expected = make_whole(tmp_path, run, 2)
    lines, *rest = story(tmp_path / "run")
    assert rest == expected
    assert steps_of(lines) == steps_of(whole)


def steps_of(lines):
    """Those of steps: where a part of the run ended it was evaluated too."""
    return [line for line in lines if line["split"] == "train"]


@each_sharding
def test_a_disk_that_takes_no_more_of_one_process(arguments, sharding, tmp_path):
    """Process 1 may write no file as large as its part."""
    run = [*arguments, "--sharding", sharding, "--model.hidden", "400"]
    again = [*run, "--run-dir", tmp_path / "run"]
    assert finish([*again, "--max-steps", "28"], 2)[0] == 0
    limited = ["bash", "-c", 'ulimit -f 20; exec "$0" "$@"', *HFDIST]
    codes, outputs = ends(start_pair(again, HFDIST, limited), within=60)
    assert codes == [2, 2], outputs
    for output in outputs:
        assert re.search("a checkpoint could not be saved in .*File too large", output)
        assert "Traceback" not in output
    check_continues(tmp_path, run)


@pytest.mark.parametrize("who", [0, 1])
@each_sharding
def test_a_process_that_pauses_for_long_is_given_up(arguments, tmp_path, who, sharding):
    run = [*arguments, "--sharding", sharding, "--epochs", "6"]
    silence = {"HFDIST_SILENCE_SECONDS": "3"}
    pair = start_pair([*run, "--run-dir", tmp_path / "run"], HFDIST, HFDIST, **silence)
    wait_for_step(tmp_path / "run", 42)
    time.sleep(random.Random(sharding).uniform(0, 0.5))
    pair[who].send_signal(signal.SIGSTOP)
    try:
        (code,), (output,) = ends([pair[1 - who]], within=20)
    finally:
        pair[who].kill()
    assert code == 1
    assert f"process {who} " in output
    check_continues(tmp_path, run)


@pytest.mark.parametrize("who", [0, 1])
@each_sharding
def test_a_short_pause_changes_nothing(arguments, tmp_path, who, sharding):
    run = [*arguments, "--sharding", sharding, "--epochs", "6"]
    pair = start_pair([*run, "--run-dir", tmp_path / "run"], HFDIST, HFDIST)
    for step in (42, 150):
        wait_for_step(tmp_path / "run", step)
        pair[who].send_signal(signal.SIGSTOP)
        time.sleep(3)
        pair[who].send_signal(signal.SIGCONT)
    codes, outputs = ends(pair, within=120)
    assert codes == [0, 0], outputs
    assert story(tmp_path / "run") == make_whole(tmp_path, run, 2)
