"""The training loop: train(config) -> Result.

For a small network time goes to Python and dispatch, not to arithmetic. So a chunk of
steps runs in one compiled scan, and while the devices are at one chunk the host writes
the metrics of the chunk before and gathers the examples of the next.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from hfdist.cluster.processes import (
    any_says,
    from_first,
    is_first,
    wait_for_all,
    within,
)
from hfdist.errors import UsageError
from hfdist.methods.method import Info, make_step
from hfdist.parallel import local_rows, make_mesh, place_chunk
from hfdist.problem import Batch, Problem
from hfdist.pytree import PyTree, same
from hfdist.runs.checkpoint import Checkpoints, steps
from hfdist.runs.config import Config
from hfdist.runs.evaluate import evaluator
from hfdist.runs.interrupt import interruptible
from hfdist.runs.plan import (
    batches_of,
    check_alike,
    check_sizes,
    last_step,
    optimizer_of,
    scans,
)
from hfdist.runs.recorder import Recorder, Result
from hfdist.runs.resume import restore_newest, restore_params
from hfdist.runs.run_directory import Run, agree, note_saved, open_run
from hfdist.runs.saver import Saver
from hfdist.runs.shards import Carry, as_saved, begin, holding, made, taken_over
from hfdist.tasks.examples import readable
from hfdist.tasks.pipeline import GlobalBatches, chunks

WAY_OUT = 20.0  # seconds in which a run that failed has to leave


def train(config: Config, name: str = "run") -> Result:
    """Train as the config says, writing its run directory; continues one that exists.

    Without a run_dir it is a new one, runs/<name>-<time>. Every process of a run calls
    this with the same config; the first one writes. SIGTERM, SIGHUP and Ctrl-C make it
    save and return. Raises UsageError for a caller's mistake, before anything is
    compiled, and for a disk that takes no more.
    """
    agree(config)
    with jax.enable_x64(config.dtype == "float64"), interruptible() as asked:
        mesh = make_mesh(config.devices)
        with ExitStack() as stack:
            try:
                return _train(config, name, mesh, asked, stack)
            except BaseException as error:
                code = 2 if isinstance(error, UsageError) else 1
                late = f"{error} (what was open could not be closed in {WAY_OUT:g} s)"
                with within(WAY_OUT, code, late):
                    stack.close()
                raise


def _train(config, name, mesh, asked, stack: ExitStack) -> Result:
    """The run; what it opens is closed by the stack."""
    train_set, test_set = (
        readable(config.data.examples(split)) for split in ("train", "test")
    )
    check_alike(train_set, test_set)
    check_sizes(config, len(train_set), 1 if mesh is None else mesh.size)
    rows = partial(local_rows, mesh=mesh)
    source = GlobalBatches(
        train_set, config.batch_size, config.seed, rows, config.batch_growth
    )
    last = last_step(config, source.passes)
    problem, first = _beginning(config, mesh)
    params = jax.eval_shape(same, first)
    optimizer = optimizer_of(config, problem, mesh)
    like = partial(as_saved, config, mesh, params)

    chunk_step = make_chunk_step(optimizer, partial(batches_of, config))
    # What tracing refuses is refused before there is a run directory.
    for leg in source.passes.legs:
        chunk = place_chunk(source.chunk(leg.first, 1), mesh)
        jax.eval_shape(chunk_step, like(holding(config, mesh)), chunk)
    measure = evaluator(problem, params, test_set, config, mesh)

    run = stack.enter_context(open_run(config, name))
    config = replace(config, run_dir=run.folder)
    checkpoints = Checkpoints(run.folder / "checkpoints", run.identity)
    start, saved = restore_newest(checkpoints, like, run.saved)
    carry = (
        taken_over(config, mesh, saved, start.sharding)
        if saved
        else begin(config, mesh, first)
    )
    saver = _saver(checkpoints.folder, run, config)
    spans = scans(source, config, start.step, last)
    recorder = Recorder(config, start, last, source.passes)
    stack.callback(recorder.close)
    for explanation in _explanations(config, mesh, problem, params, source):
        recorder.display.say(explanation)
    _enable_compilation_cache(config.compilation_cache)
    programs = _compile(chunk_step, carry, source, spans, mesh, recorder)
    feed = (place_chunk(chunk, mesh) for chunk in chunks(source, spans))
    traced = spans[min(1, len(spans) - 1)] if config.profile and spans else None
    done = _scans(programs, carry, spans, feed, recorder, traced)
    carry = _run(done, carry, recorder, measure, saver, config, mesh, asked)
    result = recorder.result
    result.test = result.test or measure(carry[0])
    saver.close()
    wait_for_all()  # the last checkpoint is whole for every process
    return result


def _saver(folder: Path, run: Run, config: Config) -> Saver:
    """What a process saves checkpoints with."""
    note = partial(note_saved, run.folder) if is_first() else None
    return Saver(folder, run.identity, config.keep, config.keep_every, note)


def _beginning(config: Config, mesh: Mesh | None) -> tuple[Problem, PyTree]:
    """The problem and the first params: another run's, where the config names one and
    there is none of this."""
    problem, params = made(config, mesh)
    continues = config.run_dir and steps(config.run_dir / "checkpoints")
    if config.init_from is None or from_first(bool(continues)):
        return problem, params
    return problem, restore_params(config.init_from, params)[1]


def _explanations(config, mesh, problem, params, source) -> Iterator[str]:
    """What the method says of solving this problem, where it says something new."""
    if holding(config, mesh) != "replicated":
        return
    said = ""
    for leg in source.passes.legs:
        chunk = replace(source, rows=slice).chunk(leg.first, 1)  # of all processes
        first = jax.tree.map(lambda a: a[0], chunk)
        batches = jax.eval_shape(partial(batches_of, config), first)
        words = config.method.explain(
            problem, params, *batches, config.micro_batch_size
        )
        if words and words != said:
            when = f"batches of {leg.start.size} after step {leg.first}: "
            yield words if leg.first == 0 else when + words
        said = words


def _scans(programs, carry, spans, feed, recorder, traced) -> Iterator:
    """Dispatch scan after scan: (step, state) after each, before it is computed."""
    for (first, count), chunk in zip(spans, feed, strict=True):
        with _profiled(recorder) if (first, count) == traced else nullcontext():
            carry, infos = programs[chunk["weights"].shape](carry, chunk)
            recorder.dispatched(first + 1, infos)
        yield first + count, carry


@contextmanager
def _profiled(recorder: Recorder) -> Iterator[None]:
    """Trace the scan dispatched in the block; the clock leaves the tracer out."""
    folder = recorder.result.run_dir / "profile"
    recorder.catch_up()
    first = recorder.result.steps + 1
    with jax.profiler.trace(str(folder)) if is_first() else nullcontext():
        recorder.start()
        yield
        recorder.catch_up()
    recorder.start()
    recorder.display.say(
        f"profile of steps {first} to {recorder.result.steps} in {folder}: "
        f"`tensorboard --logdir {folder}` (pip install xprof tensorboard), or open its "
        f".trace.json.gz in https://ui.perfetto.dev"
    )


def _run(scans, carry, recorder, measure, saver, config, mesh, asked) -> Carry:
    """The state at the end.

    Between two scans all processes do the same: evaluate after epochs and at the end,
    save when it is time, and stop when one of them was asked to.
    """
    result = recorder.result
    saved, saved_at = result.steps, time.monotonic()
    recorder.start()
    for step, carry in scans:
        due = step - saved >= (config.checkpoint_steps or math.inf)
        due = due or time.monotonic() - saved_at >= 60 * config.checkpoint_minutes
        stop, due = from_first([any_says(asked.is_set()), due])
        evaluated = recorder.is_evaluated(step)
        if not (stop or due or evaluated or result.diverged):
            continue
        recorder.catch_up()
        if evaluated or result.diverged:
            recorder.evaluation(measure(carry[0]))
        if result.diverged:
            break
        if stop or due or step == recorder.last:
            position = recorder.position()._replace(sharding=holding(config, mesh))
            saver.save(step, *carry, position._asdict())
            saved, saved_at = step, time.monotonic()
        if stop:
            result.stopped = step < recorder.last
            break
        recorder.start()
    return carry


def make_chunk_step(
    optimizer: optax.GradientTransformationExtraArgs,
    prepare: Callable[[Batch], tuple[Batch, Batch | None]],
) -> Any:
    """The jitted (carry, chunk of batches) -> (carry, infos): one scan over steps.

    prepare makes (batch, curvature_batch) of an update from a batch that was read.
    """
    update = make_step(optimizer)

    def step(carry: Carry, batch: Batch) -> tuple[Carry, Array]:
        carry, info = update(carry, *prepare(batch))
        # One row for all of the info: each array that a scan stacks costs time.
        return carry, ravel_pytree(info)[0]

    @partial(jax.jit, donate_argnums=0)
    def steps(carry: Carry, chunk: Batch) -> tuple[Carry, Info]:
        _, unravel = ravel_pytree(carry[1].info)
        carry, rows = jax.lax.scan(step, carry, chunk)
        return carry, jax.vmap(unravel)(rows)

    return steps


def _compile(chunk_step, carry, source, spans, mesh, recorder) -> dict[Any, Any]:
    """A program for each shape of chunk: (steps, B)."""
    began = time.perf_counter()
    programs = {}
    for span in spans.distinct():
        chunk = place_chunk(source.chunk(*span), mesh)
        program = chunk_step.lower(carry, chunk).compile()
        programs[chunk["weights"].shape] = program
    recorder.compiled(time.perf_counter() - began)
    return programs


def _enable_compilation_cache(folder: Path | None) -> None:
    if folder is None:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder.expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
