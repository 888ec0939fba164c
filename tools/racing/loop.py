"""One run: an optimiser for so many seconds of training, evaluated on the way.

The loop is a user's own: `method.build`, and a jitted scan of `make_step` over a chunk
of batches, whose carry is donated. The clock runs while such a scan does, and no
longer: examples are in memory, batches are gathered and put on the device before it,
and neither compilation nor evaluation counts.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hfdist.methods.method import make_step
from hfdist.parallel import place_chunk
from hfdist.problem import Batch
from hfdist.quadratics import value_and_gradient
from hfdist.runs.config import Config
from hfdist.runs.evaluate import evaluator
from hfdist.tasks.examples import Examples, readable
from hfdist.tasks.pipeline import GlobalBatches
from hfdist.tasks.returned import prepared
from racing.contest import Contest, Entrant
from racing.operations import counted
from toolkit.batches import first_batch

LENGTHS = (64, 16, 4, 1)  # steps in a scan; one program each
LONGEST = 1 / 20  # of the steps made so far, the next scan's
TOGETHER = 32  # marks that are evaluated one after the other: training after an
# evaluation is slow until memory is its own again, 2 ms on 784-10-10


class Mark(NamedTuple):
    """What is known after so many steps."""

    seconds: float  # of training
    steps: int
    gradients: float  # operations so far over those of one of the contest's task
    loss: float  # mean of all training examples; nan where a figure is raced for
    figures: dict[str, float]  # the task's, of all test examples

    def value(self, quantity: str) -> float:
        """The training loss, or one of the figures."""
        return self.loss if quantity == "loss" else self.figures[quantity]


class Course(NamedTuple):
    """What all runs of a contest share."""

    config: Config  # with the seed of the params and of the order of the examples
    examples: Examples  # to train on
    measure: Callable[[Any], tuple[float, dict[str, float]]]  # params -> loss, figures


class Limits(NamedTuple):
    """When a run is evaluated, and when it ends."""

    seconds: float
    spacing: float  # evaluated after so many times the steps of the last time
    times: tuple[float, ...] = ()  # and at these seconds
    quantity: str = "loss"
    enough: float = -math.inf  # of the quantity, where the run may end before


def course(contest: Contest, seed: int) -> Course:
    """The examples of a contest, and how params are evaluated."""
    config = replace(contest.config, seed=seed)
    problem, params = config.build_problem()
    train, test = (readable(config.data.examples(split)) for split in ("train", "test"))
    of_test = evaluator(problem, params, test, config, None)
    if contest.quantity != "loss":
        return Course(config, train, lambda p: (math.nan, of_test(p).figures))
    of_train = evaluator(problem, params, train, config, None)
    return Course(config, train, lambda p: (of_train(p).loss, of_test(p).figures))


def run(course: Course, entrant: Entrant, limits: Limits) -> list[Mark]:
    """The marks of a run, from the initial params to its end."""
    marks, due, passed = [], 0.0, 0.0
    waiting: list[tuple[tuple[float, int, float], Any]] = []
    for seconds, steps, gradients, params in _training(course, entrant):
        late = seconds >= limits.seconds
        timed = any(passed < time <= seconds for time in limits.times)
        if not (late or timed or steps >= due):
            continue
        due, passed = steps * limits.spacing if steps else 1, seconds
        so_far = seconds, steps, gradients
        waiting.append((so_far, jax.tree.map(jnp.copy, params)))
        if not late and len(waiting) < TOGETHER:
            continue
        for so_far, params in waiting:
            marks.append(Mark(*so_far, *course.measure(params)))
            if marks[-1].value(limits.quantity) <= limits.enough:
                return marks
        if late:
            break
        waiting = []
    return marks


def _training(
    course: Course, entrant: Entrant
) -> Iterator[tuple[float, int, float, Any]]:
    """Train without end: (seconds, steps, gradients, params) so far, at first at 0.

    The params are donated to the next scan.
    """
    size, fixed = entrant.batch_size, entrant.fixed
    config = replace(course.config, method=entrant.method, batch_size=size)
    own = replace(config, data=entrant.data or config.data)
    problem, params = own.build_problem()
    contests = config.build_problem()[0] if entrant.data else problem
    optimizer = entrant.method.build(problem)
    source = GlobalBatches(course.examples, size, config.seed)
    most = 1 if fixed else source.most(LENGTHS[0], size)
    prepare = partial(prepared, config.data, dtype=config.dtype)
    # Copies: no buffer may stand twice in what is donated.
    carry = jax.tree.map(jnp.copy, (params, optimizer.init(params)))

    @cache
    def scan(count: int) -> Any:
        chunk = place_chunk(source.chunk(0, count), None)
        program = make_scan(optimizer, prepare).lower(carry, chunk).compile()
        # The first call is slower than the others: it is made on a copy.
        jax.block_until_ready(program(jax.tree.map(jnp.copy, carry), chunk))
        return program

    def gradient(params: Any, batch: Batch):
        return value_and_gradient(contests, params, prepare(batch))

    first = first_batch(course.examples, size, config.seed)
    _, unit = jax.jit(counted(gradient))(params, first)
    seconds, steps, operations = 0.0, 0, 0.0
    while True:
        yield seconds, steps, operations / unit.item(), carry[0]
        count = next(n for n in LENGTHS if n <= max(1, min(most, steps * LONGEST)))
        program = scan(count)
        chunk = place_chunk(source.chunk(0 if fixed else steps, count), None)
        jax.block_until_ready(chunk)
        began = time.perf_counter()
        carry, made = jax.block_until_ready(program(carry, chunk))
        seconds += time.perf_counter() - began
        steps += count
        operations += float(np.asarray(made).sum(dtype=float))


def make_scan(
    optimizer: optax.GradientTransformationExtraArgs, prepare: Callable[[Batch], Batch]
) -> Any:
    """The jitted (carry, chunk of batches) -> (carry, operations of each step)."""
    update = counted(make_step(optimizer))

    def step(carry, batch):
        (carry, _), operations = update(carry, prepare(batch))
        return carry, operations

    @partial(jax.jit, donate_argnums=0)
    def steps(carry, chunk):
        return jax.lax.scan(step, carry, chunk)

    return steps
