"""From a process's environment to its place among those of its run."""

import json

import pytest

import idx_files
from hfdist.errors import UsageError
from hfdist.place import Place, find_place
from together import run_together

EXPLICIT = {
    "HFDIST_COORDINATOR": "host:8476",
    "HFDIST_NUM_PROCESSES": "4",
    "HFDIST_PROCESS_ID": "2",
}
POD = {
    "HFDIST_COORDINATOR": "job-0.service:8476",
    "HFDIST_NUM_PROCESSES": "4",
    "JOB_COMPLETION_INDEX": "3",
}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[03-05,9],login1",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_ID": "0",
}


def without(env, *names):
    return {name: value for name, value in env.items() if name not in names}


def test_explicit_variables_come_first():
    assert find_place(EXPLICIT) == Place("host:8476", 4, 2)
    assert find_place(SLURM | POD | EXPLICIT) == Place("host:8476", 4, 2)


def test_an_indexed_job_numbers_its_pods():
    assert find_place(POD) == Place("job-0.service:8476", 4, 3)
    assert find_place({"JOB_COMPLETION_INDEX": "3"}) is None


def test_a_slurm_step():
    assert find_place(SLURM) == Place("node03:61447", 8, 5)


def test_every_job_and_step_has_its_port():
    ports = [
        find_place(SLURM | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})[0]
        for job in (7, 8, 1234567, 4294901760)
        for step in (0, 1, 2)
    ]
    assert len(set(ports)) == len(ports)
    assert all(61440 <= int(port.rpartition(":")[2]) < 65536 for port in ports)


@pytest.mark.parametrize(
    ("nodes", "first"),
    {
        "localhost": "localhost",
        "node1,node2": "node1",
        "node[1-2]": "node1",
        "node[03-05,9]": "node03",
        "node[9,03-05]": "node9",
        "node[007]": "node007",
        "gpu-a[10-12],gpu-b[1-4]": "gpu-a10",
        "login1,node[1-2]": "login1",
        "node[1-2]-ib,node9": "node1-ib",
        "rack3-node[1-2].example.org": "rack3-node1.example.org",
        "127.0.0.[1-2]": "127.0.0.1",
    }.items(),
)
def test_the_first_host_of_a_list(nodes, first):
    place = find_place(SLURM | {"SLURM_STEP_NODELIST": nodes})
    assert place is not None
    assert place.coordinator.rpartition(":")[0] == first


@pytest.mark.parametrize(
    "env",
    [
        {},
        # shells inside an allocation, as tests/test_slurm.py finds them
        without(SLURM, "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"),
        without(SLURM, "SLURM_STEP_NODELIST"),
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        SLURM
        | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"}
        | {"SLURM_PROCID": "0"},
        # runs of one process
        EXPLICIT | {"HFDIST_NUM_PROCESSES": "1", "HFDIST_PROCESS_ID": "0"},
        without(SLURM, "SLURM_STEP_NUM_TASKS")
        | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
    ],
)
def test_a_run_of_one_process(env):
    assert find_place(env) is None


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (without(EXPLICIT, "HFDIST_PROCESS_ID"), "HFDIST_PROCESS_ID is not set: set"),
        (without(EXPLICIT, "HFDIST_COORDINATOR"), "HFDIST_COORDINATOR is not set"),
        (
            {"HFDIST_PROCESS_ID": "0"},
            "HFDIST_COORDINATOR, HFDIST_NUM_PROCESSES is not set",
        ),
        (without(EXPLICIT, "HFDIST_PROCESS_ID") | SLURM, "HFDIST_PROCESS_ID is not"),
        (EXPLICIT | {"HFDIST_PROCESS_ID": ""}, "HFDIST_PROCESS_ID is not set"),
        (EXPLICIT | {"HFDIST_PROCESS_ID": "4"}, "this is process 4 of 4: number them"),
        (EXPLICIT | {"HFDIST_PROCESS_ID": "-1"}, "this is process -1 of 4"),
        (EXPLICIT | {"HFDIST_PROCESS_ID": "one"}, "this is process one of 4"),
        (EXPLICIT | {"HFDIST_NUM_PROCESSES": "0"}, "this is process 2 of 0"),
        (POD | {"JOB_COMPLETION_INDEX": "4"}, "this is process 4 of 4"),
        (EXPLICIT | {"HFDIST_COORDINATOR": "host"}, "is 'host': give HOST:PORT"),
        (EXPLICIT | {"HFDIST_COORDINATOR": ":8476"}, "is ':8476': give HOST:PORT"),
        (EXPLICIT | {"HFDIST_COORDINATOR": "host:http"}, "give HOST:PORT"),
        (SLURM | {"SLURM_PROCID": "8"}, "this is process 8 of 8"),
        (SLURM | {"SLURM_STEP_NODELIST": ""}, "is '', which names no host"),
    ],
)
def test_variables_that_do_not_fit_together(env, message):
    with pytest.raises(UsageError, match=message):
        find_place(env)


@pytest.mark.slow
def test_tasks_of_a_slurm_step_train_together(tmp_path):
    """Two real processes with the five variables alone, as another SLURM may set."""
    data = idx_files.make_folder(tmp_path / "data")
    tasks = [
        {
            "SLURM_JOB_ID": "123",
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(task),
            "SLURM_LOCALID": str(task),
        }
        for task in range(2)
    ]
    done = run_together(
        tasks,
        *("train", "configs/paper/sgd.py", "--data.dir", data, "--data.classes", "3"),
        *("--batch-size", "8", "--max-steps", "3", "--run-dir", tmp_path / "run"),
    )
    assert [code for code, _ in done] == [0, 0], done
    assert json.loads((tmp_path / "run/config.json").read_text())["processes"] == 2
