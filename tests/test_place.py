"""From a process's environment to its place among those of its run."""

import json
import socket

import pytest

import idx_files
from hfdist.cluster.place import Place, find_bind_address, find_place
from hfdist.errors import UsageError
from together import free_port, run_together

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
    place = Place("host:8476", 4, 2, "host:8476", 15, 12)
    assert find_place(EXPLICIT) == place
    assert find_place(SLURM | POD | EXPLICIT) == place


def test_an_indexed_job_numbers_its_pods():
    assert find_place(POD)[:3] == ("job-0.service:8476", 4, 3)
    assert find_place({"JOB_COMPLETION_INDEX": "3"}) is None


def test_a_slurm_step():
    assert find_place(SLURM)[:3] == ("node03:61447", 8, 5)


def test_how_long_to_wait_is_a_setting():
    times = {"HFDIST_START_SECONDS": "600", "HFDIST_SILENCE_SECONDS": "2.5"}
    assert find_place(SLURM | times)[4:] == (600, 2.5)
    assert find_place(SLURM | dict.fromkeys(times, ""))[4:] == (15, 12)


@pytest.mark.parametrize(
    ("given", "bind"),
    {
        "": "host:8476",
        "10.0.0.1": "10.0.0.1:8476",
        "0.0.0.0:99": "0.0.0.0:99",
        "[fe80::1%eth0]": "[fe80::1%eth0]:8476",
        "[::]:99": "[::]:99",
    }.items(),
)
def test_where_process_0_listens_is_a_setting(given, bind):
    place = find_place(EXPLICIT | {"HFDIST_BIND_ADDRESS": given})
    assert (place.coordinator, place.bind) == ("host:8476", bind)


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
        *[
            (
                EXPLICIT | {"HFDIST_PROCESS_ID": odd},
                "HFDIST_PROCESS_ID is '.*from 0 to 3$",
            )
            for odd in ("4", "-1", "one", "²", "١", "1_0", "9" * 5000)
        ],
        *[
            (EXPLICIT | {"HFDIST_NUM_PROCESSES": odd}, "HFDIST_NUM_PROCESSES is '")
            for odd in ("0", "-1", "²", "٤", "1e2", str(10**30), " 4")
        ],
        (POD | {"JOB_COMPLETION_INDEX": "4"}, "JOB_COMPLETION_INDEX is '4'"),
        *[
            (
                EXPLICIT | {"HFDIST_COORDINATOR": odd},
                "HFDIST_COORDINATOR is .*HOST:PORT",
            )
            for odd in (
                *("host", ":8476", "host:http", "host:99999", "host:0", "host:-1"),
                *("host:²", "ho st:80", "host\0:80", "hóst:80", "a..b:80", "::1:80"),
                *("host\n:80", "host:80\n", "\udcff:80", "x" * 64 + ":80"),
            )
        ],
        (
            EXPLICIT | {"HFDIST_BIND_ADDRESS": "host:0"},
            "HFDIST_BIND_ADDRESS is 'host:0",
        ),
        (EXPLICIT | {"HFDIST_BIND_ADDRESS": "::"}, "HFDIST_BIND_ADDRESS is '::': give"),
        *[
            (EXPLICIT | {f"HFDIST_{name}_SECONDS": odd}, f"HFDIST_{name}_SECONDS is '")
            for name in ("START", "SILENCE")
            for odd in ("abc", "nan", "inf", "-1", "0", "1e300", "1e3", "9" * 400, "²")
        ],
        *[
            (SLURM | {f"SLURM_{name}": odd}, f"SLURM_{name} is '{odd}': set it to a")
            for name in ("JOB_ID", "STEP_ID", "PROCID", "STEP_NUM_TASKS")
            for odd in ("abc", "-1", "²")
        ],
        (
            without(SLURM, "SLURM_STEP_NUM_TASKS") | {"SLURM_NTASKS": "abc"},
            "SLURM_NTASKS is 'abc'",
        ),
        (SLURM | {"SLURM_PROCID": "8"}, "SLURM_PROCID is '8': .* from 0 to 7"),
        (SLURM | {"SLURM_STEP_NODELIST": ""}, "is '', which names no host"),
        (SLURM | {"SLURM_STEP_NODELIST": "a b"}, "SLURM_STEP_NODELIST is 'a b'"),
    ],
)
def test_variables_that_make_no_sense(env, message):
    with pytest.raises(UsageError, match=message) as caught:
        find_place(env)
    assert "\n" not in str(caught.value)


def place_of(bind, seconds=1):
    return Place("host:8476", 2, 0, bind, seconds, 12)


def resolve_to(monkeypatch, *answers):
    """What the host's name leads to, asked again and again; None if to nothing."""
    left, real = list(answers), socket.getaddrinfo

    def getaddrinfo(host, port, **how):
        answer = left.pop(0) if len(left) > 1 else left[0]
        if answer is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(answer, port, **how)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_the_address_of_process_0_in_numbers(capsys):
    port = free_port()
    assert find_bind_address(place_of(f"localhost:{port}")) == f"127.0.0.1:{port}"
    assert find_bind_address(place_of(f"0.0.0.0:{port}")) == f"0.0.0.0:{port}"
    assert capsys.readouterr().err == ""


def test_a_pod_waits_until_its_name_leads_to_it(monkeypatch):
    # nowhere; to the pod that was there before (an address kept for documents); to it
    resolve_to(monkeypatch, None, "192.0.2.1", "127.0.0.2")
    port = free_port()
    found = find_bind_address(place_of(f"hfdist-0.hfdist:{port}", seconds=10))
    assert found == f"127.0.0.2:{port}"


def test_a_name_that_is_loopback_on_its_own_machine_is_told(monkeypatch, capsys):
    """As Debian's /etc/hosts has it."""
    resolve_to(monkeypatch, "127.0.1.1")
    port = free_port()
    assert find_bind_address(place_of(f"node1:{port}")) == f"127.0.1.1:{port}"
    said = capsys.readouterr().err
    assert said.startswith(f"hfdist: node1:{port} is 127.0.1.1:{port} here, where no")
    assert "set HFDIST_BIND_ADDRESS to an address of this one" in said


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(None, "Name or service not known"), ("192.0.2.1", "Cannot assign requested")],
)
def test_a_name_that_never_leads_here(monkeypatch, answer, reason):
    resolve_to(monkeypatch, answer)
    message = f"cannot listen on node1:8476 .{reason}.*HFDIST_BIND_ADDRESS to one that"
    with pytest.raises(UsageError, match=message):
        find_bind_address(place_of("node1:8476"))


@pytest.mark.parametrize("there", ["127.0.0.1", ""])
def test_a_port_that_is_taken(there):
    """It is the one address that is tried, though another is taken."""
    with socket.create_server((there, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UsageError, match=r"Address already in use.*another port"):
            find_bind_address(place_of(f"127.0.0.1:{port}", seconds=60))
        if there:
            assert find_bind_address(place_of(f"127.0.0.2:{port}"))


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
