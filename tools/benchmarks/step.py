"""A training step's cost against what it must cost."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from optax import tree

import hfdist
from benchmarks.measurement import (
    AUTOENCODER,
    Measurement,
    epoch_seconds,
    seconds_each,
)
from hfdist.methods.method import make_step
from hfdist.models.mlp import MLP
from hfdist.models.model import functional
from hfdist.parallel import collectives
from hfdist.pytree import parameter_count
from hfdist.quadratics import quadratic, value_and_gradient
from hfdist.runs.config import Config
from hfdist.tasks.idx import IDX
from hfdist.tasks.pipeline import GlobalBatches
from toolkit.batches import mnist_batch


def step() -> list[Measurement]:
    """The cost of a training step against what it must cost."""
    return [
        *trainer_overhead("SGD", hfdist.SGD(learning_rate=0.1)),
        *trainer_overhead("HF-GN", hfdist.HessianFree(damping=4.0)),
        *product_over_gradient("784-10-10", (10,), 10, batch=64, limit=1.0),
        *product_over_gradient("784-128-10", (128,), 10, batch=64, limit=1.0),
        *product_over_gradient("autoencoder", AUTOENCODER, 784, batch=512, limit=4 / 3),
        *step_operations("784-10-10", (10,), batch=64),
        *step_operations("784-128-10", (128,), batch=64),
    ]


def trainer_overhead(name: str, method: hfdist.Method) -> list[Measurement]:
    """An epoch of the trainer over one of a bare scan of the same updates.

    The bare scan is one program for the whole epoch, over float32 batches that lie on
    the device: no input pipeline, no metrics, no chunks.
    """
    problem, params = Config(method=method).build_problem()
    optimizer = method.build(problem)
    update = make_step(optimizer)

    def bare_step(carry, batch):
        carry, info = update(carry, batch)
        return carry, info.loss

    source = GlobalBatches(IDX().examples("train"), batch_size=64, seed=0)
    batches = jax.jit(partial(IDX().prepare, dtype="float32"))(
        source.chunk(0, source.per_epoch)
    )
    bare = jax.jit(partial(jax.lax.scan, bare_step))
    carry = (params, optimizer.init(params))

    bare_seconds, trainer_seconds = [], []
    for _ in range(3):
        seconds_each(bare, carry, batches, repeats=1)  # warms up
        bare_seconds += seconds_each(bare, carry, batches, repeats=4)
        trainer_seconds += epoch_seconds(method, epochs=5)
    bare_median = statistics.median(bare_seconds)
    trainer_median = statistics.median(trainer_seconds)
    return [
        Measurement(f"{name}: bare scan", bare_median, None, "s/epoch"),
        Measurement(f"{name}: trainer", trainer_median, None, "s/epoch"),
        Measurement(
            f"{name}: trainer / bare scan", trainer_median / bare_median, 1.2, "ratio"
        ),
    ]


def product_over_gradient(
    name: str, hidden: tuple[int, ...], outputs: int, batch: int, limit: float
) -> list[Measurement]:
    """One Gauss-Newton product, linearised already, over one gradient.

    Each is timed in a loop inside one program, so that dispatch does not count; the
    linearisation before the loop is subtracted. The limit counts floating-point
    operations: with a forward pass of F, F₁ of it in the first layer, whose inputs need
    no derivative, a product takes 4F - 2F₁ and a gradient 3F - F₁.
    """
    problem, params, data = example(hidden, outputs, batch)
    devices = collectives(None)
    count = max(8, int(1e9 / (parameter_count(params) * batch)))

    @partial(jax.jit, static_argnums=1)
    def products(params, count):
        model = quadratic(problem, params, data, "gauss_newton", devices)
        return jax.lax.fori_loop(
            0, count, lambda _, v: tree.add_scale(v, 1e-4, model.product(v)), params
        ), model.gradient

    @jax.jit
    def gradients(params):
        def descend(_, p):
            _, gradient = value_and_gradient(problem, p, data, devices)
            return tree.add_scale(p, -1e-4, gradient)

        return jax.lax.fori_loop(0, count, descend, params)

    programs = (
        partial(products, params, count),
        partial(products, params, 0),
        partial(gradients, params),
    )
    for program in programs:
        seconds_each(program, repeats=1)
    times = [[seconds_each(p, repeats=1)[0] for p in programs] for _ in range(15)]
    with_products, without, with_gradients = map(
        statistics.median, zip(*times, strict=True)
    )
    product, gradient = (with_products - without) / count, with_gradients / count
    return [
        Measurement(f"{name}: gradient", gradient * 1e3, None, "ms"),
        Measurement(f"{name}: GGN product", product * 1e3, None, "ms"),
        Measurement(
            f"{name}: GGN product / gradient", product / gradient, 1.15 * limit, "ratio"
        ),
    ]


def step_operations(
    name: str, hidden: tuple[int, ...], batch: int
) -> list[Measurement]:
    """Compiled operations of an HF-GN step over those of 1 gradient + 1 product.

    XLA counts a loop's body once, so this is the step with one CG step, in which
    whatever is neither gradient nor product weighs most.
    """
    problem, params, data = example(hidden, 10, batch)
    devices = collectives(None)
    optimizer = hfdist.HessianFree(damping=4.0).build(problem)
    state = optimizer.init(params)

    def model_and_products(params, *vectors):
        model = quadratic(problem, params, data, "gauss_newton", devices)
        return model.gradient, [model.product(v) for v in vectors]

    def whole_step(params):
        return make_step(optimizer)((params, state), data)

    def loss_and_gradient(params):
        return value_and_gradient(problem, params, data, devices)

    gradient = operations(loss_and_gradient, params)
    other = tree.scale(2.0, params)
    product = operations(model_and_products, params, params, other)
    product -= operations(model_and_products, params, params)
    ratio = operations(whole_step, params) / (gradient + product)
    return [Measurement(f"{name}: HF step / (g + product)", ratio, 1.1, "flop ratio")]


def operations(function: Callable, *args: Any) -> float:
    """Floating-point operations of a compiled function, by XLA's count."""
    analysis = jax.jit(function).lower(*args).compile().cost_analysis()
    assert analysis is not None
    return analysis["flops"]


def example(hidden: tuple[int, ...], outputs: int, batch: int):
    """A problem with its params and one MNIST batch; 784 outputs: reconstruct it."""
    predict, params = functional(MLP(hidden=hidden).build(784, outputs, 0))
    data = mnist_batch("test", batch)
    if outputs == 784:
        data = {"inputs": data["inputs"], "targets": data["inputs"]}
        return hfdist.Problem(predict, hfdist.losses.squared_error), params, data
    return hfdist.Problem(predict, hfdist.losses.softmax_cross_entropy), params, data
