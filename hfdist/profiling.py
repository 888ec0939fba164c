"""A trace of a few steps, for xprof (TensorBoard) and Perfetto."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from hfdist.recorder import Recorder


@contextmanager
def profiled(recorder: Recorder) -> Iterator[None]:
    """Trace the scan dispatched in the block, alone, into RUN_DIR/profile.

    The run's clock leaves out the tracer's start and its writing.
    """
    folder = recorder.result.run_dir / "profile"
    recorder.catch_up()
    first = recorder.result.steps + 1
    with jax.profiler.trace(str(folder)):
        recorder.start()
        yield
        recorder.catch_up()
    recorder.start()
    recorder.say(
        f"profile of steps {first} to {recorder.result.steps} in {folder}: "
        f"`tensorboard --logdir {folder}` (pip install xprof tensorboard), or open its "
        f".trace.json.gz in https://ui.perfetto.dev"
    )
