"""Where a process stands among those of its run, and at which address they meet."""

import contextlib
import errno
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from hfdist.errors import UsageError

EXPLICIT = ("HFDIST_COORDINATOR", "HFDIST_NUM_PROCESSES", "HFDIST_PROCESS_ID")
SLURM = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")
START, SILENCE = "15", "12"  # seconds, unless the environment says otherwise
FOREIGN = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # of another machine
MOST_SECONDS, MOST_PROCESSES = 24 * 3600, 1_000_000

LABEL = "[A-Za-z0-9_-]{1,63}"
ADDRESS = re.compile(
    rf"({LABEL}(?:\.{LABEL})*\.?|\[[0-9A-Fa-f:.]+(?:%\w+)?\])(?::([0-9]{{1,5}}))?",
    re.ASCII,
)


class Place(NamedTuple):
    """One process of several. Addresses are HOST:PORT."""

    coordinator: str  # where the others reach process 0
    processes: int
    process: int  # this one, from 0
    bind: str  # where process 0 listens
    start_seconds: float  # for which the processes wait for each other
    silence_seconds: float  # after which a process is given up


def find_place(env: Mapping[str, str]) -> Place | None:
    """The place that the environment names; None for a run of one process.

    Explicit variables come first, then those of a SLURM step. An Indexed Kubernetes
    Job numbers its pods itself, so that the first two explicit ones are enough there.
    Raises UsageError for variables that make no sense.
    """
    if any(name in env for name in EXPLICIT):
        coordinator, processes, process = EXPLICIT
        if not env.get(process) and env.get("JOB_COMPLETION_INDEX"):
            process = "JOB_COMPLETION_INDEX"
        names = (coordinator, processes, process)
        if missing := [name for name in names if not env.get(name)]:
            raise UsageError(f"{', '.join(missing)} is not set: set all of {EXPLICIT}")
        address = _address(coordinator, env[coordinator])
        return _place(env, address, processes, process)
    # A shell inside an allocation has some of them, or is a step of one task.
    if not all(f"SLURM_{name}" in env for name in SLURM):
        return None
    steps = "SLURM_STEP_NUM_TASKS"
    tasks = steps if steps in env else "SLURM_NTASKS"
    return _place(env, _slurm_coordinator(env), tasks, "SLURM_PROCID")


def _slurm_coordinator(env: Mapping[str, str]) -> str:
    job = _number(env, "SLURM_JOB_ID", 0, 2**32)
    step = _number(env, "SLURM_STEP_ID", 0, 2**32) if "SLURM_STEP_ID" in env else 0
    # Above Linux's ephemeral ports; another for each job and step on a node.
    port = 61440 + (job + 97 * step) % 4096
    # The first of node[03-05,9],login1: node03.
    name = "SLURM_STEP_NODELIST"
    found = re.match(r"([^\[,]+)(?:\[([0-9]+)[^\]]*\]([^,]*))?", env[name])
    if found is None:
        raise UsageError(
            f"{name} is {env[name]!r}, which names no host: set all of {EXPLICIT}"
        )
    return _address(name, "".join(part or "" for part in found.groups()), str(port))


def _place(
    env: Mapping[str, str], coordinator: str, processes: str, process: str
) -> Place | None:
    """The place, given the names of the variables with the two numbers."""
    total = _number(env, processes, 1, MOST_PROCESSES)
    number = _number(env, process, 0, total - 1)
    bind, port = "HFDIST_BIND_ADDRESS", coordinator.rpartition(":")[2]
    place = Place(
        coordinator,
        total,
        number,
        _address(bind, env[bind], port) if env.get(bind) else coordinator,
        _seconds(env, "HFDIST_START_SECONDS", START),
        _seconds(env, "HFDIST_SILENCE_SECONDS", SILENCE),
    )
    return place if total > 1 else None


def _number(env: Mapping[str, str], name: str, least: int, most: int) -> int:
    # int() alone takes the digits of any script, and no number of 5,000 digits.
    if re.fullmatch("[0-9]{1,10}", env[name]) and least <= int(env[name]) <= most:
        return int(env[name])
    raise UsageError(
        f"{name} is {env[name]!r}: set it to a whole number from {least} to {most}"
    )


def _seconds(env: Mapping[str, str], name: str, default: str) -> float:
    text = env.get(name) or default
    plain = re.fullmatch(r"[0-9]{1,9}(\.[0-9]{0,9})?", text)
    if plain and 1 <= float(text) <= MOST_SECONDS:
        return float(text)
    raise UsageError(f"{name} is {text!r}: give seconds, from 1 to {MOST_SECONDS}")


def _address(name: str, text: str, port: str = "") -> str:
    """HOST:PORT, checked; the port may be missing from the text if it is given."""
    found = ADDRESS.fullmatch(text)
    port = (found and found[2]) or port
    if found and port and 1 <= int(port) <= 65535:
        return f"{found[1]}:{int(port)}"
    raise UsageError(
        f"{name} is {text!r}: give HOST:PORT of process 0, with a port from 1 to 65535 "
        f"that is free there, and an IPv6 address in brackets"
    )


def find_bind_address(place: Place) -> str:
    """The address in numbers on which process 0 can listen.

    The name of a pod takes a while to lead to the pod: that is waited for. Raises
    UsageError if there is no such address, or its port is taken.
    """
    deadline = time.monotonic() + place.start_seconds
    while True:
        try:
            found = _free(place.bind)
        except OSError as error:
            unknown = isinstance(error, socket.gaierror) or error.errno in FOREIGN
            if not unknown or time.monotonic() > deadline:
                raise _cannot_listen(place.bind, error, unknown) from None
            time.sleep(0.2)
        else:
            _warn_of_loopback(place.bind, found)
            return found


def _cannot_listen(address: str, error: OSError, unknown: bool) -> UsageError:
    remedy = "choose another port"
    if unknown:
        remedy = (
            "HFDIST_COORDINATOR must name the machine of process 0; where that is no "
            "address of the machine itself (NAT, published ports), set "
            "HFDIST_BIND_ADDRESS to one that is"
        )
    reason = error.strerror or error
    return UsageError(f"process 0 cannot listen on {address} ({reason}): {remedy}")


def _free(where: str) -> str:
    """The first address of a host that is this machine's, if the port is free."""
    host, port = _split(where)
    last = OSError("no address")
    for family, kind, _, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        try:
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            if error.errno not in FOREIGN:
                raise
            last = error
        else:
            number = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
            return f"{number}:{port}"
    raise last


def _warn_of_loopback(asked: str, found: str) -> None:
    if found.startswith(("127.", "[::1]")) and not asked.startswith(
        ("localhost:", found)
    ):
        print(
            f"hfdist: {asked} is {found} here, where no other machine can reach it: if "
            f"the run has several, set HFDIST_BIND_ADDRESS to an address of this one",
            file=sys.stderr,
        )


def await_coordinator(place: Place) -> None:
    """Go on when process 0 listens. Raises UsageError if it does not in time."""
    deadline = time.monotonic() + place.start_seconds
    while True:
        try:
            socket.create_connection(_split(place.coordinator), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UsageError(
                    f"process 0 does not answer at {place.coordinator} after "
                    f"{place.start_seconds:g} s ({error.strerror or error}): check "
                    f"that it has started, that this is its address, that it listens "
                    f"there (HFDIST_BIND_ADDRESS), and that no firewall closes the port"
                ) from None
        time.sleep(0.2)


def relay(coordinator: str, broken: Callable[[], None]) -> str:
    """The address, for gRPC, of a socket in this process that leads to process 0.

    JAX aborts a process when its connection to process 0 breaks, without an exception.
    Here the connection beyond the socket breaks first, which calls `broken`.
    """
    server = socket.socket(socket.AF_UNIX)
    server.bind("")  # Linux chooses a name that is no file
    server.listen()
    thread = threading.Thread(
        target=_serve, args=(server, coordinator, broken), daemon=True
    )
    thread.start()
    return f"unix-abstract:{server.getsockname()[1:].decode()}"


def _serve(server: socket.socket, coordinator: str, broken: Callable) -> None:
    while True:
        near, _ = server.accept()
        with contextlib.suppress(OSError), near:
            far = socket.create_connection(_split(coordinator))
            threading.Thread(target=_send, args=(near, far), daemon=True).start()
            _copy(far, near)
            broken()  # before JAX sees it
            near.shutdown(socket.SHUT_RDWR)


def _send(near: socket.socket, far: socket.socket) -> None:
    _copy(near, far)
    with contextlib.suppress(OSError):
        far.shutdown(socket.SHUT_RDWR)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(2**16):
            target.sendall(data)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
