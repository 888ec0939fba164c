"""Batches that grow, against loops over their examples."""

import random

import numpy as np
import pytest

from hfdist import SGD
from hfdist.runs.config import Config
from hfdist.runs.plan import scans
from hfdist.tasks.examples import Arrays
from hfdist.tasks.passes import Passes
from hfdist.tasks.pipeline import GlobalBatches, chunks

BATCHES = 200


def walked(examples, size, growth):
    """(epoch, position, size) of each batch, one after the other."""
    epoch = position = 0
    places = []
    for number in range(BATCHES):
        size = dict(growth).get(number, size)
        places.append((epoch, position, size))
        position += size
        if position >= examples:
            epoch, position = epoch + 1, 0
    return places


def schedules(count):
    """Random (examples, batch size, growth); the last batches may hold all."""
    rng = random.Random(0)
    for _ in range(count):
        examples = rng.randint(1, 60)
        size, *sizes = sorted(rng.sample(range(1, 63), rng.randint(1, 5)))
        updates = sorted(rng.sample(range(1, BATCHES), len(sizes)))
        yield examples, size, tuple(zip(updates, sizes, strict=True))


EACH = list(schedules(25))
each_schedule = pytest.mark.parametrize(("examples", "size", "growth"), EACH)


@each_schedule
def test_batches_lie_where_a_loop_over_them_comes(examples, size, growth):
    passes = Passes(examples, size, growth)
    places = walked(examples, size, growth)
    assert [passes.place(number) for number in range(BATCHES)] == places
    for epochs in range(1, places[-1][0] + 1):
        assert passes.steps(epochs) == sum(epoch < epochs for epoch, *_ in places)


@each_schedule
@pytest.mark.parametrize("evaluation_epochs", [1, 3])
def test_scans_end_at_changes_and_evaluations(
    examples, size, growth, evaluation_epochs
):
    config = Config(
        method=SGD(),
        batch_size=size,
        batch_growth=growth,
        evaluation_epochs=evaluation_epochs,
        steps_per_dispatch=7,
    )
    data = Arrays({"inputs": np.zeros((examples, 1))})
    source = GlobalBatches(data, size, seed=0, growth=growth)
    places = walked(examples, size, growth)
    last = BATCHES - 1
    cuts = {last, *(number for number, _ in growth)}
    cuts |= {
        number
        for number, (epoch, position, _) in enumerate(places)
        if number and position == 0 and epoch % evaluation_epochs == 0
    }
    whole = list(scans(source, config, 0, last))
    for start in range(0, last, 13):
        spans = scans(source, config, start, last)
        steps = [step for first, count in spans for step in range(first, first + count)]
        assert steps == list(range(start, last))
        ends = {first + count for first, count in spans}
        assert ends == {end for first, n in whole if (end := first + n) > start}
        assert ends >= {cut for cut in cuts if cut > start}
        assert max(count for _, count in spans) <= 7
        programs = [(places[first][2], count) for first, count in spans.distinct()]
        assert set(programs) == {(places[first][2], count) for first, count in spans}
        assert len(set(programs)) == len(programs)  # each is compiled once
    assert not scans(source, config, last, last)


@each_schedule
def test_a_pass_takes_every_example_once(examples, size, growth):
    data = Arrays({"number": np.arange(examples)})
    source = GlobalBatches(data, size, seed=3, growth=growth)
    epochs = walked(examples, size, growth)[-1][0]
    spans = [(number, 1) for number in range(source.passes.steps(epochs))]
    order = [
        np.random.default_rng((3, epoch)).permutation(examples)
        for epoch in range(epochs)
    ]
    seen = [chunk["number"][chunk["weights"] == 1] for chunk in chunks(source, spans)]
    assert np.concatenate(seen).tolist() == np.concatenate(order).tolist()


def test_a_billion_epochs_are_counted_not_held():
    passes = Passes(60_000, 64, ((938, 128), (10**12, 256)))
    assert passes.steps(10**9) == 938 + (10**9 - 1) * 469
    assert passes.place(10**12 + 1).size == 256
