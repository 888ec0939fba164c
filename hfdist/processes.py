"""The processes of a run: how they meet, agree, and leave.

JAX's distributed service, which process 0 hosts, carries all of it. A process that
fails says so in the service's key-value store and leaves at once; the others listen
there and end too, instead of waiting in a collective for ever. A process that dies
without a word gives no more signs of life, which process 0 notices, and names it.
"""

import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
from jax._src.distributed import global_state  # the store has no public name

from hfdist.errors import UsageError
from hfdist.place import Place, find_place

BEAT, SILENT = 2.0, 12.0  # seconds between signs of life; without one until given up
PATIENCE = 24 * 3600 * 1000  # ms that another process may take; it is watched meanwhile
FAILED = "hfdist/failed"
GONE = "is gone: killed, or out of reach"

_done = threading.Event()
_questions = itertools.count()


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the run's other processes for the time of a block, before the first use of
    JAX; a run of one process has nothing to join.

    At the end of the block the slowest is waited for. An error inside it ends this
    process at once, with exit code 2 for a UsageError, after telling the others, which
    end with the same code. Raises UsageError if the processes cannot meet.
    """
    if place := find_place(os.environ):
        _join(place)
    try:
        yield
        if _store():
            wait_for_all()
            _done.set()
            jax.distributed.shutdown()
    except BaseException as error:
        if store := _store():
            _fail(store, error)
        raise


def is_first() -> bool:
    """Whether this process writes what the run writes once."""
    return global_state.process_id == 0


def this_process() -> str:
    """How messages name this process."""
    return f"process {global_state.process_id} on {socket.gethostname()}"


def from_first(value: Any) -> Any:
    """Process 0's value, in every process; it must be JSON."""
    store = _store()
    if store is None:
        return value
    key = f"hfdist/answer/{next(_questions)}"
    if is_first():
        store.key_value_set(key, json.dumps(value))
    return json.loads(store.blocking_key_value_get(key, PATIENCE))


def any_says(yes: bool) -> bool:
    """Whether any process has said yes so far; only process 0 hears it."""
    store = _store()
    if store is None:
        return yes
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # said already; nobody has
        if yes:
            store.key_value_set("hfdist/yes", "")
        if is_first():
            store.key_value_try_get("hfdist/yes")
            return True
    return yes


def wait_for_all() -> None:
    """Go on when every process is here."""
    if store := _store():
        store.wait_at_barrier(f"hfdist/here/{next(_questions)}", PATIENCE)


def _store() -> Any:
    """The client of JAX's key-value store; None in a run of one process."""
    return global_state.client


def _join(place: Place) -> None:
    seconds = float(os.environ.get("HFDIST_START_SECONDS", 15))
    host, _, port = place.coordinator.rpartition(":")
    if place.process == 0:
        _check_free(int(port))
    else:
        _await_coordinator(host, int(port), seconds)
    late = (
        f"the {place.processes} processes did not all meet at {place.coordinator} "
        f"within {seconds:g} s: see what each of them says; HFDIST_START_SECONDS gives "
        f"them longer"
    )
    # At its own deadline JAX aborts without an exception: be there first.
    alarm = threading.Timer(seconds, _exit, (2, late))
    alarm.start()
    # Its handler would keep SIGTERM from ending the process.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        *place,
        cluster_detection_method="deactivate",
        initialization_timeout=int(seconds) + 60,
    )
    alarm.cancel()
    threading.Thread(target=_watch, args=(place,), daemon=True).start()


def _check_free(port: int) -> None:
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise UsageError(
            f"process 0 cannot listen on port {port} ({error.strerror}): choose another"
        ) from None


def _await_coordinator(host: str, port: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UsageError(
                    f"process 0 does not answer at {host}:{port} after {seconds:g} s "
                    f"({error.strerror or error}): check that it has started, that "
                    f"this is its address, and that no firewall closes the port"
                ) from None
        time.sleep(0.2)


def _watch(place: Place) -> None:
    """Give signs of life, and end this process when another has ended badly."""
    store, host = _store(), socket.gethostname()
    signs = {str(p): ("", time.monotonic()) for p in range(1, place.processes)}
    for beat in itertools.count():
        try:
            key = f"hfdist/alive/{place.process}"
            store.key_value_set(key, f"{host} {beat}", allow_overwrite=True)
            if place.process == 0:
                _look_for_silent(store, signs)
            # Comes at once when a process fails; else it is the pause between beats.
            news = store.blocking_key_value_get(FAILED, int(1000 * BEAT))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                continue
            news = json.dumps([1, f"process 0 at {place.coordinator} {GONE}"])
        if _done.is_set():
            return
        _let_others_read()
        _exit(*json.loads(news))


def _look_for_silent(store: Any, signs: dict[str, tuple[str, float]]) -> None:
    now = time.monotonic()
    for key, sign in store.key_value_dir_get("hfdist/alive/"):
        process = key.rpartition("/")[2]
        if process in signs and signs[process][0] != sign:
            signs[process] = sign, now
    for process, (sign, when) in signs.items():
        if now - when > SILENT:
            host = sign.split()[0] if sign else "an unknown host"
            message = f"process {process} on {host} gave no sign of life for {SILENT} s"
            _say(store, 1, message)


def _fail(store: Any, error: BaseException) -> NoReturn:
    if isinstance(error, UsageError):
        code, message = 2, str(error)
    elif isinstance(error, KeyboardInterrupt):
        code, message = 130, "interrupted"
    else:
        if isinstance(error, jax.errors.JaxRuntimeError):
            # A collective fails when a peer dies. If that is process 0, JAX aborts
            # this one in a moment; of the others the watch will hear, and exit.
            _check_coordinator(global_state.coordinator_address or "")
            time.sleep(SILENT + 2 * BEAT)
        traceback.print_exception(error)
        code, message = 1, f"{type(error).__name__}: {error}"
    _say(store, code, f"process {global_state.process_id}: {message}")
    _let_others_read()
    _exit(code, message)


def _check_coordinator(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        _exit(1, f"process 0 at {address} {GONE}")


def _say(store: Any, code: int, message: str) -> None:
    # The first to speak is heard: what fails after it fails because of it.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        store.key_value_set(FAILED, json.dumps([code, message]))


def _let_others_read() -> None:
    if is_first():
        time.sleep(BEAT)  # the store dies with this process


def _exit(code: int, message: str) -> NoReturn:
    """Without JAX's exit barrier, which waits for processes that will not come."""
    print(f"hfdist: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
