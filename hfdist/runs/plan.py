"""What a run is going to do: batches that fit, its last step, its scans."""

from fractions import Fraction
from functools import partial

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from hfdist.batches import spread
from hfdist.errors import UsageError
from hfdist.problem import Batch, Problem
from hfdist.runs.config import Config
from hfdist.runs.spans import Joined, Spans
from hfdist.tasks.examples import Examples
from hfdist.tasks.passes import Passes
from hfdist.tasks.pipeline import GlobalBatches
from hfdist.tasks.returned import prepared

MOST_STEPS = 2**31 - 1  # a method's own count of its updates is an int32
FINEST = 1000  # denominator of a curvature fraction: 0.3333333 is a third


def check_alike(train_set: Examples, test_set: Examples) -> None:
    """Raise UsageError for test examples of another shape than the training ones."""
    train, test = (one.gather(np.zeros(1, int)) for one in (train_set, test_set))
    for name in sorted(train.keys() & test.keys()):
        shapes = [
            jax.tree.map(lambda a: a.shape[1:], one[name]) for one in (train, test)
        ]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"a training example has {name} of shape {shapes[0]} and a test "
                f"example of {shapes[1]}: they do not belong together"
            )


def check_sizes(config: Config, examples: int, devices: int) -> None:
    """Raise UsageError for a batch that the data, or the devices, are too few for."""
    for updates, size in ((0, config.batch_size), *config.batch_growth):
        when = f"after {updates:,} updates " if updates else ""
        p, q = curvature_share(config).as_integer_ratio()
        # Rounded up, so that the devices share it, the whole set is one batch.
        if size >= examples + q * devices:
            raise UsageError(
                f"batch_size {when}is {size} but the data has only {examples} "
                f"examples: use a smaller batch"
            )
        if size % devices:
            raise UsageError(
                f"batch_size {size} {when}cannot be split evenly over {devices} "
                f"devices in {jax.process_count()} process(es): use a multiple of "
                f"{devices}"
            )
        if size % (q * devices):
            raise UsageError(
                f"curvature_fraction is {config.curvature_fraction:g}, {p} of every "
                f"{q} examples, which cannot be taken evenly of the {size // devices} "
                f"that batch_size {size} {when}gives each of {devices} device(s): use "
                f"a multiple of {q * devices}, or another curvature_fraction"
            )


def curvature_share(config: Config) -> Fraction:
    """The share of a batch's examples that its products are over, in lowest terms."""
    return Fraction(config.curvature_fraction).limit_denominator(FINEST)


def optimizer_of(
    config: Config, problem: Problem, mesh: Mesh | None
) -> optax.GradientTransformationExtraArgs:
    """The config's method for a problem, over the devices of a mesh."""
    return config.method.build(
        problem,
        mesh,
        micro_batch_size=config.micro_batch_size,
        sharding=config.sharding,
    )


def batches_of(config: Config, batch: Batch) -> tuple[Batch, Batch | None]:
    """(batch, curvature_batch) of an update, of one that was read; None: the same."""
    prepare = partial(prepared, config.data, dtype=config.dtype)
    share = curvature_share(config)
    return prepare(batch), None if share == 1 else prepare(spread(batch, share))


def last_step(config: Config, passes: Passes) -> int:
    """The step that ends the run. Raises UsageError for more than can be counted."""
    last = passes.steps(config.epochs)
    last = min(last, config.max_steps or last)
    if last > MOST_STEPS:
        raise UsageError(
            f"{config.epochs:,} epochs are {last:,} steps, and a run counts to "
            f"{MOST_STEPS:,}: use fewer epochs, or --max-steps"
        )
    return last


def scans(source: GlobalBatches, config: Config, start: int, last: int) -> Joined:
    """The scans after step `start`: of batches of one size each, to the last step.

    They are cut where the run is evaluated, after every evaluation_epochs epochs.
    """
    legs, every, parts = source.passes.legs, config.evaluation_epochs, []
    for leg, until in zip(legs, [*(leg.first for leg in legs[1:]), last], strict=True):
        stretch = every * leg.per_epoch
        evaluated = leg.end((leg.start.epoch // every + 1) * every)
        most = source.most(config.steps_per_dispatch, leg.start.size)
        begin, end = max(start, leg.first), min(until, last)
        parts.append(Spans(begin, end, stretch, most, evaluated - stretch))
    return Joined(parts)
