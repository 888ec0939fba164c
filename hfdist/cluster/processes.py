"""The processes of a run: how they meet, agree, and leave.

JAX's distributed service, which process 0 hosts, carries all of it. A process that
fails says so in the service's key-value store and leaves at once; the others listen
there and end too, instead of waiting in a collective for ever. A process that dies
without a word gives no more signs of life, which process 0 notices, and names it. Of
process 0 the others hear no more. Every wait has an end.
"""

import contextlib
import itertools
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

import jax
from jax._src.distributed import global_state  # the store has no public name

from hfdist.cluster.place import (
    SILENCE,
    Place,
    await_coordinator,
    find_bind_address,
    find_place,
    relay,
)
from hfdist.errors import UsageError, told

BEAT = 2.0  # seconds between signs of life, if they are not given up sooner
READ = 2.0  # seconds in which the others hear what process 0 has last said
WAY_OUT = 8.0  # seconds for what a process that fails has to say
PATIENCE = 24 * 3600 * 1000  # ms that another process may take; it is watched meanwhile
FAILED = "hfdist/failed"

_met, _done = threading.Event(), threading.Event()
_questions = itertools.count()


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the run's other processes for the time of a block, before the first use of
    JAX; a run of one process has nothing to join.

    At the end of the block the slowest is waited for. An error inside it ends this
    process at once, with exit code 2 for a UsageError, after telling the others, which
    end with the same code. Raises UsageError if the processes cannot meet.
    """
    place = find_place(os.environ)
    watch = _join(place) if place else None
    silence = place.silence_seconds if place else float(SILENCE)
    try:
        yield
        if store := _store():
            wait_for_all()
            _done.set()
            with within(silence + WAY_OUT, 1, "a process does not leave: it hangs"):
                _say(store, 0, "")
                if watch:
                    watch.join()  # in C++ it would abort the interpreter at its end
                jax.distributed.shutdown()
    except BaseException as error:
        if store := _store():
            _fail(store, error, silence)
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


def from_all(value: Any) -> list[Any]:
    """The value of every process, in every process, in the order of their numbers.

    It must be JSON.
    """
    store = _store()
    if store is None:
        return [value]
    key = f"hfdist/answer/{next(_questions)}"
    store.key_value_set(f"{key}/{global_state.process_id}", json.dumps(value))
    processes = range(global_state.num_processes)
    values = [store.blocking_key_value_get(f"{key}/{p}", PATIENCE) for p in processes]
    return [json.loads(value) for value in values]


def first_hears(seconds: float) -> Callable[[Any], list[Any]]:
    """A function by which every process tells the first a value; it must be JSON.

    It may be called in any thread, and returns the values in process 0, in the order
    of their numbers, and none elsewhere, where nothing is waited for. It raises
    TimeoutError where one comes so many seconds later than process 0's own.
    """
    store, key = _store(), f"hfdist/answer/{next(_questions)}"

    def tell(value: Any) -> list[Any]:
        if store is None:
            return [value]
        if not is_first():
            store.key_value_set(f"{key}/{global_state.process_id}", json.dumps(value))
            return []
        deadline = time.monotonic() + seconds
        others = range(1, global_state.num_processes)
        return [value, *(_heard(store, key, p, deadline) for p in others)]

    return tell


def _heard(store: Any, key: str, process: int, deadline: float) -> Any:
    left, text = max(0.0, deadline - time.monotonic()), None
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        text = store.blocking_key_value_get(f"{key}/{process}", int(1000 * left))
    if text is None:
        raise TimeoutError(f"process {process} has not answered in time")
    store.key_value_delete(f"{key}/{process}")
    return json.loads(text)


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


def _join(place: Place) -> threading.Thread:
    """Meet the others; the thread that watches them from then on."""
    if place.process == 0:
        bind = reach = find_bind_address(place)
    else:
        await_coordinator(place)
        bind, reach = None, relay(place.coordinator, partial(_lost, place))
    late = (
        f"the {place.processes} processes did not all meet at {place.coordinator} "
        f"within {place.start_seconds:g} s: see what each of them says; "
        f"HFDIST_START_SECONDS gives them longer"
    )
    # Its handler would keep SIGTERM from ending the process.
    jax.config.update("jax_enable_preemption_service", False)
    # At its own deadlines JAX aborts without an exception: ours are earlier.
    with within(place.start_seconds, 2, late):
        jax.distributed.initialize(
            reach,
            place.processes,
            place.process,
            cluster_detection_method="deactivate",
            coordinator_bind_address=bind,
            initialization_timeout=int(place.start_seconds) + 60,
            heartbeat_timeout_seconds=int(place.silence_seconds) + 60,
        )
    _met.set()
    watch = threading.Thread(target=_watch, args=(place,), daemon=True)
    watch.start()
    return watch


def _lost(place: Place) -> None:
    """The connection to process 0 broke."""
    if _met.is_set() and not _done.is_set():
        leave(1, _gone(place))


def _gone(place: Place) -> str:
    return f"process 0 at {place.coordinator} is gone: killed, or out of reach"


def _watch(place: Place) -> None:
    """Give signs of life, and end this process when another has ended badly."""
    store, host, silence = _store(), socket.gethostname(), place.silence_seconds
    signs = {str(p): ("", time.monotonic()) for p in range(1, place.processes)}
    pause = min(BEAT, silence / 6)
    gone = _gone(place)
    for beat in itertools.count():
        news = None
        # What asks a store that does not answer waits without an end.
        with within(silence, 1, gone) if place.process else contextlib.nullcontext():
            try:
                key = f"hfdist/alive/{place.process}"
                store.key_value_set(key, f"{host} {beat}", allow_overwrite=True)
                if place.process == 0:
                    _look_for_silent(store, signs, silence)
                # Comes at once when a process fails; else it is the pause.
                news = store.blocking_key_value_get(FAILED, int(1000 * pause))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    news = json.dumps([1, gone])
        code, message = json.loads(news) if news else (None, "")
        if code == 0 or _done.is_set():
            return
        if code:
            _let_others_read()
            leave(code, message)


def _look_for_silent(
    store: Any, signs: dict[str, tuple[str, float]], silence: float
) -> None:
    now = time.monotonic()
    for key, sign in store.key_value_dir_get("hfdist/alive/"):
        process = key.rpartition("/")[2]
        if process in signs and signs[process][0] != sign:
            signs[process] = sign, now
    for process, (sign, when) in signs.items():
        if now - when > silence:
            host = sign.split()[0] if sign else "an unknown host"
            message = (
                f"process {process} on {host} gave no sign of life for {silence:g} s "
                f"(HFDIST_SILENCE_SECONDS)"
            )
            _say(store, 1, message)


def _fail(store: Any, error: BaseException, silence: float) -> NoReturn:
    code, message = 1, told(error)
    if isinstance(error, UsageError):
        code, message = 2, str(error)
    elif isinstance(error, KeyboardInterrupt):
        code, message = 130, "interrupted"
    elif isinstance(error, jax.errors.JaxRuntimeError) or re.search(
        "Gloo|NCCL",
        str(error),  # which JAX also raises as a ValueError
    ):
        # A collective fails when a peer dies, whom the watch will name; it exits then.
        time.sleep(silence + 2 * BEAT)
    with within(WAY_OUT, code, message):
        if code == 1:
            traceback.print_exception(error)
        _say(store, code, f"process {global_state.process_id}: {message}")
        _let_others_read()
    leave(code, message)


def _say(store: Any, code: int, message: str) -> None:
    # The first to speak is heard: what fails after it fails because of it.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        store.key_value_set(FAILED, json.dumps([code, message]))


def _let_others_read() -> None:
    if is_first():
        time.sleep(READ)  # the store dies with this process


@contextlib.contextmanager
def within(seconds: float, code: int, message: str) -> Iterator[None]:
    """End this process with a message if the block takes longer."""
    alarm = threading.Timer(seconds, leave, (code, message))
    alarm.daemon = True
    alarm.start()
    try:
        yield
    finally:
        alarm.cancel()


def leave(code: int, message: str) -> NoReturn:
    """End this process at once with a message.

    JAX's exit barrier would wait for processes that will not come.
    """
    alarm = threading.Timer(WAY_OUT, os._exit, (code,))
    alarm.daemon = True
    alarm.start()  # nobody may read what this writes
    with contextlib.suppress(Exception):
        print(f"hfdist: {message}", file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(code)
