"""What a step costs on GPUs: its operations, its seconds, and the cards' figures."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from cases import METHODS, Case
from communication import gpu_cost
from communication.arithmetic import (
    CG_STEP,
    LEFT_OUT,
    ONCE,
    SOME_STEPS,
    operations,
)
from communication.cards import CARDS, KERNEL
from communication.cost import Link
from communication.gpu_cost import Layout, Work
from hfdist import CG
from hfdist.methods.method import make_step
from racing.operations import counted

LAYOUT = Layout(4, 8, Link(100e9, 1e-6), Link(10e9, 1e-5))


def test_a_step_has_the_operations_that_are_counted_while_it_runs():
    case = Case("softmax_cross_entropy", examples=8, weighted=True)
    method = replace(METHODS["hf_gauss_newton"], cg=CG(max_steps=3, rtol=0.0))
    optimizer = method.build(case.problem)
    step = make_step(optimizer)
    arguments = (case.params, optimizer.init(case.params)), case.batch
    (_, info), ran = counted(step)(*arguments)
    assert info.cg_steps == 3
    found = operations(jax.make_jaxpr(step)(*arguments))
    assert {place for place, _ in found} == {ONCE, CG_STEP}
    total = sum(n * (3 if at == CG_STEP else 1) for (at, _), n in found.items())
    assert total == ran


def test_operations_by_place_and_number_format():
    a, b = jnp.ones((4, 8), jnp.float32), jnp.ones((8, 4), jnp.float32)

    def product(a, precision=None):
        return jnp.matmul(jnp.matmul(a, b, precision=precision), a, precision=precision)

    def function(a):
        a = jax.lax.scan(lambda a, _: (product(a, "highest"), None), a, length=3)[0]
        a = jax.lax.cond(a[0, 0] > 0, product, lambda a: a, a)

        def body(a):
            return jax.lax.cond(a[0, 0] > 0, product, lambda a: a, jax.jit(product)(a))

        a = jax.lax.while_loop(lambda a: a[0, 0] < 1, body, a)
        half = product(a).astype(jnp.bfloat16)
        return half @ half.T, jnp.linalg.qr(a), a.astype(float) @ b.astype(float)

    one = 2 * 2 * 4 * 8 * 4
    assert (
        operations(jax.make_jaxpr(function)(a))
        == {
            (ONCE, "float32"): 3 * one,
            (SOME_STEPS, "tf32"): one,
            (CG_STEP, "tf32"): 2 * one,
            (ONCE, "tf32"): one,
            (ONCE, "bfloat16"): 2 * 4 * 8 * 4,
            (ONCE, "float64"): 2 * 4 * 8 * 4,
            (LEFT_OUT, "geqrf"): 1,
            (LEFT_OUT, "householder_product"): 1,
        }
        or operations(jax.make_jaxpr(function)(a))[LEFT_OUT, "qr"] == 1
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_operations_of_a_convolution_and_its_derivatives(stride):
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((4, 4, 3, 5))

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            *(x, kernel, (stride, stride), "VALID"),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    outputs = 2 * len(range(0, 5, stride)) ** 2 * 5
    counted = operations(jax.make_jaxpr(convolve)(x, kernel))
    assert counted.total() == 2 * outputs * 4 * 4 * 3
    # Every weight meets every output of its channel once in this one, too.
    of_kernel = jax.grad(lambda k: jnp.sum(convolve(x, k) ** 2))
    counted = operations(jax.make_jaxpr(of_kernel)(kernel))
    assert counted.total() == 2 * (2 * outputs * 4 * 4 * 3)


def test_arithmetic_seconds():
    work = Work({"tf32": 494e9, "float32": 67e9}, 3.352e9, 10)
    seconds = gpu_cost.arithmetic_seconds(work, CARDS["H100"], 0.5)
    assert seconds == pytest.approx((1e-3 + 1e-3) / 0.5 + 10 * KERNEL)
    moving = work._replace(bytes=4 * 3.352e9)
    seconds = gpu_cost.arithmetic_seconds(moving, CARDS["H100"], 1)
    assert seconds == pytest.approx(4e-3 + 10 * KERNEL)


def test_the_work_on_other_shares():
    one, two = Work({"tf32": 10, "float32": 1}, 100, 7), Work({"tf32": 18}, 150, 7)
    at = partial(gpu_cost.at_share, one, two)
    assert at(1) == Work({"tf32": 10, "float32": 1}, 100, 7)
    assert at(2) == Work({"tf32": 18, "float32": 0}, 150, 7)
    assert at(0.5) == Work({"tf32": 6, "float32": 1.5}, 75, 7)


def test_collective_seconds():
    seconds = partial(gpu_cost.collective_seconds, layout=LAYOUT)
    # Rings: 14 rounds of 1 MB inside, 6 of a quarter of 1 MB between the hosts.
    big = 14 * (1e-5 + 1e-6) + 6 * (2.5e-5 + 1e-5)
    assert seconds("all-reduce", 8e6) == pytest.approx(big)
    # Trees: 3 hops each way, and 2.
    small = 2 * 800 / 100e9 + 6e-6 + 2 * 100 / 10e9 + 4e-5
    assert seconds("all-reduce", 800) == pytest.approx(small)
    gather = 7 * (1e-5 + 1e-6) + 3 * (2.5e-5 + 1e-5)
    assert seconds("all-gather", 8e6) == pytest.approx(gather)
    assert seconds("reduce-scatter", 8e6) == pytest.approx(gather)
    one_host = gpu_cost.collective_seconds("all-reduce", 8e6, LAYOUT.of(8))
    assert one_host == pytest.approx(14 * (1e-5 + 1e-6))
    assert gpu_cost.collective_seconds("all-reduce", 8e6, LAYOUT.of(1)) == 0


@pytest.mark.parametrize("name", CARDS)
def test_cards_are_sane(name):
    card = CARDS[name]
    assert name in card.name
    assert f"major: {card.capability[0]} minor: 0" in card.target
    assert card.target.count("{") == card.target.count("}")
    assert 80e9 < card.memory < 200e9
    assert card.network < card.nvlink < card.bandwidth
    peak = card.peak
    assert peak["float64"] <= peak["float32"] < peak["tf32"] < peak["bfloat16"]
    # Cores times units times two operations a tick, within what clocks differ by.
    own = 2 * card.cores * card.units * card.clock * 1e9
    assert own == pytest.approx(peak["float32"], rel=0.02)
