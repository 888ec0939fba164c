"""hfdist.fit against scipy, numpy's linear algebra and certified values."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

import hfdist
from hfdist import Ending, UsageError
from quick import mostly_slow
from regressions import MODELS, read
from test_processes import free_port
from test_processes import start as start_process

X = np.linspace(0.0, 4.0, 60)
NOISE = np.random.default_rng(0).normal(size=60)
SIGMA = 0.05 + 0.02 * X
START = (1.0, 1.0, 0.0)
FOUR = hfdist.make_mesh(4)


def curve(x, height, rate, level):
    """In numpy."""
    return height * np.exp(-rate * x) + level


def decay(x, height, rate, level):
    return height * jnp.exp(-rate * x) + level


Y = curve(X, 2.5, 1.3, 0.5) + SIGMA * NOISE


def with_tree(x, params):
    return decay(x, *params["exponential"], params["level"])


def line(x, params):
    return x @ params


def scipys(p0=START, **options):
    return scipy.optimize.curve_fit(curve, X, Y, p0, **options)


@pytest.mark.parametrize("sigma", [None, SIGMA], ids=["alike", "given"])
@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
def test_params_and_covariance_are_scipys(sigma, absolute):
    found = hfdist.fit(decay, X, Y, START, sigma, absolute)
    wanted, covariance = scipys(
        sigma=sigma, absolute_sigma=absolute, ftol=1e-15, xtol=1e-15
    )
    assert found.ending == Ending.CONVERGED
    np.testing.assert_allclose(found.params, wanted, rtol=1e-7)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-5)
    np.testing.assert_allclose(
        found.standard_errors, np.sqrt(np.diagonal(covariance)), rtol=1e-5
    )


def test_goodness_of_fit_and_intervals_are_textbook():
    found = hfdist.fit(decay, X, Y, START, SIGMA)
    weights = SIGMA**-2.0
    squares = np.sum(weights * (Y - curve(X, *found.params)) ** 2)
    about = np.sum(weights * (Y - np.average(Y, weights=weights)) ** 2)
    assert found.squares == pytest.approx(squares, rel=1e-12)
    assert found.reduced_chi_squared == pytest.approx(squares / 57, rel=1e-12)
    assert found.r_squared == pytest.approx(1 - squares / about, rel=1e-12)
    half = scipy.stats.t(57).ppf(0.995) * np.array(found.standard_errors)
    low, high = found.confidence_intervals(0.99)
    np.testing.assert_allclose(low, np.array(found.params) - half, rtol=1e-12)
    np.testing.assert_allclose(high, np.array(found.params) + half, rtol=1e-12)
    known = hfdist.fit(decay, X, Y, START, SIGMA, absolute_sigma=True)
    _, high = known.confidence_intervals(0.99)
    half = scipy.stats.norm.ppf(0.995) * np.array(known.standard_errors)
    np.testing.assert_allclose(high, np.array(known.params) + half, rtol=1e-12)


def test_params_may_be_a_tree_and_x_too():
    start = {"exponential": np.ones(2), "level": 0}
    found = hfdist.fit(with_tree, X, Y, start)
    plain = hfdist.fit(decay, X, Y, START)
    np.testing.assert_array_equal(found.params["exponential"], plain.params[:2])
    assert found.params["level"] == plain.params[2]
    assert found.standard_errors["exponential"].shape == (2,)

    def of_pair(x, slope, other):
        return slope * x["a"] + other * x["b"]

    x = {"a": X, "b": X**2}
    found = hfdist.fit(of_pair, x, Y, [1.0, 1.0], tolerance=1e-13)
    truth, *_ = np.linalg.lstsq(np.stack([X, X**2], 1), Y)
    np.testing.assert_allclose(found.params, truth, rtol=1e-10)


def test_l2_is_ridge_regression():
    rng = np.random.default_rng(1)
    x, y, mus = rng.normal(size=(20, 3)), rng.normal(size=20), np.array([1.0, 2, 0])
    found = hfdist.fit(line, x, y, np.zeros(3), l2=mus, tolerance=1e-13)
    matrix = x.T @ x + np.diag(mus)
    truth = np.linalg.solve(matrix, x.T @ y)
    squares = np.sum((y - x @ truth) ** 2)
    np.testing.assert_allclose(found.params, truth, rtol=1e-10)
    assert found.squares == pytest.approx(squares, rel=1e-12)
    covariance = squares / 17 * np.linalg.inv(matrix)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    "bounds",
    [
        ((0, 0, 0.6), (9, 9, 9)),
        ((0, 0, -9), (2.0, 9, 0.4)),
        ((0, 0, 0), (9, 9, 9)),
    ],
    ids=["one", "two", "none"],
)
def test_at_a_bound_params_and_covariance_are_scipys(bounds):
    start = np.clip(START, *bounds)
    found = hfdist.fit(decay, X, Y, tuple(start), bounds=bounds)
    exact = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
    wanted, covariance = scipys(p0=start, bounds=bounds, method="trf", **exact)
    assert found.ending == Ending.CONVERGED
    assert found.steps < 20
    np.testing.assert_allclose(found.params, wanted, rtol=1e-5)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-4)
    assert found.squares <= np.sum((Y - curve(X, *wanted)) ** 2) * (1 + 1e-12)
    for p, low, high in zip(found.params, *bounds, strict=True):
        assert low <= p <= high


def test_blocks_and_devices_change_nothing_but_the_order_of_a_sum():
    whole = hfdist.fit(decay, X, Y, START, SIGMA)
    blocks = hfdist.fit(decay, X, Y, START, SIGMA, micro_batch_size=7)
    four = hfdist.fit(decay, X, Y, START, SIGMA, mesh=FOUR, micro_batch_size=7)
    np.testing.assert_allclose(blocks.covariance, whole.covariance, rtol=1e-6)
    np.testing.assert_allclose(blocks.params, whole.params, rtol=1e-9)
    np.testing.assert_array_equal(four.params, blocks.params)
    np.testing.assert_array_equal(four.covariance, blocks.covariance)
    shared = hfdist.fit(decay, X, Y, START, SIGMA, mesh=FOUR)
    np.testing.assert_allclose(shared.params, whole.params, rtol=1e-9)


def test_rows_of_infinite_sigma_count_for_nothing():
    sigma = np.where(np.arange(60) < 40, 1.0, np.inf)
    found = hfdist.fit(decay, X, Y, START, sigma)
    alone = hfdist.fit(decay, X[:40], Y[:40], START)
    np.testing.assert_allclose(found.params, alone.params, rtol=1e-8)


def test_params_that_the_data_do_not_tell_apart_have_no_covariance():
    with pytest.warns(RuntimeWarning, match="do not tell the params apart"):
        found = hfdist.fit(lambda x, a, b: (a + b) * x, X, Y, [1.0, 2.0])
    assert np.all(np.isinf(found.covariance))
    assert found.converged
    exact = np.sum(X * Y) / np.sum(X * X)
    assert sum(found.params) == pytest.approx(exact, rel=1e-9)


def test_float64_whatever_jax_is_set_to():
    with jax.enable_x64(False):
        found = hfdist.fit(decay, X, Y, START)
        assert not jax.config.jax_enable_x64
    np.testing.assert_array_equal(found.params, hfdist.fit(decay, X, Y, START).params)


def test_an_end_without_a_minimum_is_said():
    assert hfdist.fit(decay, X, Y, START, max_steps=1).ending == Ending.STEPS_USED_UP


NAN = np.where(np.arange(60) == 7, np.nan, Y)
MISTAKES = [
    ({"y": NAN}, r"y is not finite in row 7"),
    ({"x": NAN}, r"x is not finite in row 7"),
    ({"sigma": np.where(X > 3.9, 0, SIGMA)}, r"sigma is not positive in row 58"),
    ({"sigma": np.eye(60)}, r"sigma has shape \(60, 60\).*one standard deviation"),
    ({"x": np.ones((2, 60))}, r"x has shape \(2, 60\) and y \(60,\).*\.T"),
    ({"y": 3.0}, r"y has shape \(\), too few values for 3"),
    ({"x": X[:2], "y": Y[:2]}, r"y has shape \(2,\), too few values for 3"),
    ({"y": Y.astype(complex)}, r"y is of complex128: give real numbers"),
    ({"p0": (1.0, 1.0)}, r"the model cannot be called with x and 2 more"),
    ({"p0": (1.0, 1.0, np.nan)}, r"p0 is .*finite number"),
    ({"p0": (1.0, 1.0, "a")}, r"p0 is .*finite number"),
    ({"p0": (1.0, -1e3, 0.0)}, r"the model, or its derivative, is not finite at p0"),
    ({"bounds": (0, 1, 2)}, r"bounds is \(0, 1, 2\): use a pair"),
    ({"bounds": (2, 9)}, r"param 0 starts from 1, with bounds 2 and 9"),
    ({"bounds": ([0, 1], 9)}, r"bounds\[0\] is \[0, 1\]: use one number, one for each"),
    ({"l2": -1.0}, r"l2 is -1.0"),
    ({"model": lambda x, a, b, c: a * x[:9]}, r"gives shape \(9,\) for 60 rows"),
    ({"tolerance": 0}, r"tolerance is 0"),
    ({"micro_batch_size": 0}, r"micro_batch_size is 0"),
]


@pytest.mark.parametrize(("changed", "message"), MISTAKES)
def test_a_mistake_is_said_with_its_remedy(changed, message):
    given = {"model": decay, "x": X, "y": Y, "p0": START} | changed
    with pytest.raises(UsageError, match=message):
        hfdist.fit(**given)


def test_a_level_is_a_probability():
    with pytest.raises(UsageError, match=r"level is 1\.5"):
        hfdist.fit(decay, X, Y, START).confidence_intervals(1.5)


@pytest.mark.parametrize("name", mostly_slow(MODELS, {"BoxBOD", "MGH09"}))
def test_both_starts_come_to_six_certified_digits_and_errors(name):
    regression = read(name)
    x, y = regression.batch["inputs"], regression.batch["targets"][:, 0]

    def model(x, b):
        return regression.model(b, x)

    # From its far start MGH10 goes down a valley to b₁ = 1e-53, and all the way back.
    most = 10_000 if name == "MGH10" else 1_000
    for start in regression.starts:
        found = hfdist.fit(model, x, y, start, max_steps=most)
        assert regression.digits(found.params) >= 6, found
        if name != "Lanczos1":  # which fits to rounding
            np.testing.assert_allclose(
                found.standard_errors, regression.deviations, rtol=1e-6
            )


ROWS = 10_000_000
MEMORY = 1_000_000  # kilobytes
TRUTH = np.array([1.0, 0.5, 3.0, 0.8, 2.0, 1.2, 7.0, 0.6])
STREAM = """
import json, resource, sys
import jax.numpy as jnp
import numpy as np
import hfdist

def peaks(x, p):
    first = p[2] * jnp.exp(-0.5 * ((x - p[1] - 2) / p[3]) ** 2)
    second = p[4] * jnp.exp(-0.5 * ((x - p[6]) / p[5]) ** 2)
    return first + second + p[0] + p[7] * x

with hfdist.joined():
    x, y = (np.load(f"{sys.argv[1]}/{name}.npy", mmap_mode="r") for name in "xy")
    p0 = np.array(json.loads(sys.argv[2]))
    found = hfdist.fit(peaks, x, y, p0, mesh=hfdist.make_mesh(1))
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([kilobytes, found.ending, found.params.tolist()]))
"""


def peaks(x, p):
    first = p[2] * np.exp(-0.5 * ((x - p[1] - 2) / p[3]) ** 2)
    second = p[4] * np.exp(-0.5 * ((x - p[6]) / p[5]) ** 2)
    return first + second + p[0] + p[7] * x


@pytest.mark.slow
def test_ten_million_rows_in_a_gigabyte_on_one_process_and_on_two(tmp_path):
    rng = np.random.default_rng(2)
    x, y = (
        np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", float, (ROWS,))
        for name in "xy"
    )
    for rows in np.array_split(np.arange(ROWS), 20):
        x[rows] = rng.uniform(0, 10, len(rows))
        y[rows] = peaks(x[rows], TRUTH) + rng.normal(size=len(rows))
    said = []
    for processes in (1, 2):
        port, arguments = free_port(), [tmp_path, (TRUTH + 0.2).tolist()]
        running = [
            start_process(i, arguments, port, processes, ("-c", STREAM))
            for i in range(processes)
        ]
        for process in running:
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output
            kilobytes, *found = json.loads(output[output.index("[") :].splitlines()[-1])
            assert kilobytes < MEMORY
            said.append(found)
    assert said[0] == said[1] == said[2]
    ending, params = said[0]
    assert ending == Ending.CONVERGED
    # Standard errors are about 1e-3.
    np.testing.assert_allclose(params, TRUTH, atol=0.01)
