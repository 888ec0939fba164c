"""The training loop: train(config) -> Result.

For a small network time goes to Python and dispatch, not to arithmetic. So a chunk of
steps runs in one compiled scan, and while the devices are at one chunk the host writes
the metrics of the chunk before and gathers the examples of the next.
"""

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from hfdist.checkpoint import Checkpoints
from hfdist.config import Config
from hfdist.data.pipeline import GlobalBatches, chunks, decode
from hfdist.errors import UsageError
from hfdist.evaluate import Evaluation, evaluator
from hfdist.methods.method import Info, State
from hfdist.parallel import local_rows, make_mesh, place_chunk, replicate
from hfdist.problem import Batch
from hfdist.processes import agree, from_first
from hfdist.pytree import PyTree
from hfdist.recorder import Recorder
from hfdist.run_directory import open_run, settings

Carry = tuple[PyTree, State]
Plan = list[list[tuple[int, int]]]


class Result(NamedTuple):
    """How a run ended."""

    run_dir: Path
    steps: int  # updates made, over all the run's continuations
    train_loss: float  # mean over the steps of the last epoch
    test: Evaluation
    seconds: float  # training alone: neither compilation nor evaluation
    compile_seconds: float
    rejected: int  # steps not applied
    indefinite: int  # steps whose solver met negative curvature
    diverged: bool


def train(config: Config) -> Result:
    """Train as the config says, writing its run directory; continues one that exists.

    Every process of a run calls this with the same config; the first one writes.
    Raises UsageError for a caller's mistake, before anything is compiled.
    """
    agree(settings(config))
    with jax.enable_x64(config.dtype == "float64"):
        return _train(config, make_mesh(config.devices))


def _train(config: Config, mesh: Mesh | None) -> Result:
    train_set, test_set = config.data.load("train"), config.data.load("test")
    _check_batch_size(config.batch_size, len(train_set.labels), mesh)
    rows = local_rows(config.batch_size, mesh)
    source = GlobalBatches(train_set, config.batch_size, config.seed, rows)
    problem, params = config.build_problem(train_set.inputs.shape[1])
    optimizer = config.method.build(problem, mesh)
    carry = replicate((params, optimizer.init(params)), mesh)

    run_dir = open_run(config)
    with closing(
        Checkpoints(run_dir / "checkpoints", config.checkpoint_minutes)
    ) as checkpoints:
        start, carry = _restore(checkpoints, carry)
        last = config.epochs * source.per_epoch
        last = min(last, config.max_steps or last)
        plan = _plan(start, last, source.per_epoch, config.steps_per_dispatch)

        _enable_compilation_cache(config.compilation_cache)
        chunk_step = make_chunk_step(optimizer, config.dtype)
        programs, compile_seconds = _compile(chunk_step, carry, source, plan, mesh)
        measure = evaluator(problem, test_set, config, mesh)
        with closing(
            Recorder(config, start, last, source.per_epoch, compile_seconds)
        ) as recorder:
            spans = [span for epoch in plan for span in epoch]
            feed = (place_chunk(chunk, mesh) for chunk in chunks(source, spans))
            for epoch in plan:
                carry = _run_epoch(programs, carry, epoch, feed, recorder)
                recorder.evaluation(measure(carry[0]))
                if recorder.diverged:
                    break
                # Saving takes all processes; the clock of one decides.
                if from_first(recorder.step == last or checkpoints.due):
                    checkpoints.save(recorder.step, *carry)
            test = recorder.test or measure(carry[0])
    return Result(
        run_dir=run_dir,
        steps=recorder.step,
        train_loss=recorder.train_loss,
        test=test,
        seconds=recorder.seconds,
        compile_seconds=compile_seconds,
        rejected=recorder.rejected,
        indefinite=recorder.indefinite,
        diverged=recorder.diverged,
    )


def _check_batch_size(batch_size: int, examples: int, mesh: Mesh | None) -> None:
    if batch_size > examples:
        raise UsageError(
            f"batch_size is {batch_size} but the data has only {examples} examples: "
            f"use a smaller batch"
        )
    devices = 1 if mesh is None else mesh.size
    if batch_size % devices:
        raise UsageError(
            f"batch_size {batch_size} cannot be split evenly over {devices} devices "
            f"in {jax.process_count()} process(es): use a multiple of {devices}"
        )


def make_chunk_step(
    optimizer: optax.GradientTransformationExtraArgs, dtype: str
) -> Any:
    """The jitted (carry, chunk of batches) -> (carry, infos): one scan over steps."""
    update: Callable[..., Any] = optimizer.update

    def step(carry: Carry, batch: Batch) -> tuple[Carry, Info]:
        params, state = carry
        updates, state = update(None, state, params, batch=decode(batch, dtype))
        return (optax.apply_updates(params, updates), state), state.info

    return jax.jit(partial(jax.lax.scan, step), donate_argnums=0)


def _run_epoch(programs, carry, epoch, feed, recorder) -> Carry:
    """Run an epoch's chunks, recording each while the next one is computed."""
    recorder.start()
    pending: tuple[int, Info] | None = None
    for (first, count), chunk in zip(epoch, feed, strict=False):
        carry, infos = programs[count](carry, chunk)
        if pending:
            recorder.steps(*pending)
        pending = first + 1, infos
        if recorder.diverged:
            break
    if pending:
        recorder.steps(*pending)
    return carry


def _plan(start: int, last: int, per_epoch: int, most: int) -> Plan:
    """The chunks (first batch, count) still to run after step `start`, by epoch."""
    plan = []
    while start < last:
        end = min(last, (start // per_epoch + 1) * per_epoch)
        plan.append([(k, min(most, end - k)) for k in range(start, end, most)])
        start = end
    return plan


def _compile(chunk_step, carry, source, plan, mesh) -> tuple[dict, float]:
    """One program for each length of chunk, and the seconds that took."""
    began = time.perf_counter()
    programs = {}
    for count in {count for epoch in plan for _, count in epoch}:
        chunk = place_chunk(source.chunk(0, count), mesh)
        programs[count] = chunk_step.lower(carry, chunk).compile()
    return programs, time.perf_counter() - began


def _restore(checkpoints: Checkpoints, carry: Carry) -> tuple[int, Carry]:
    """The step to continue after, 0 for a new run, and the state there."""
    if checkpoints.latest() is None:
        return 0, carry
    params, optimizer = carry
    step, items = checkpoints.restore(None, params=params, optimizer=optimizer)
    return step, (items["params"], items["optimizer"])


def _enable_compilation_cache(folder: Path | None) -> None:
    if folder is None:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder.expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
