"""Physics-informed nets: derivatives, residuals, losses and errors by closed forms."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hfdist
from cases import relative_error
from hfdist import CG, HessianFree, Newton, UsageError, quadratic
from hfdist.jacobian import with_jacobian
from hfdist.models.mlp import MLP
from hfdist.quadratics import value_and_gradient
from hfdist.runs.config import Config
from hfdist.runs.evaluate import evaluate
from hfdist.runs.train import train
from hfdist.tasks.burgers import Burgers
from hfdist.tasks.heat import Heat
from hfdist.tasks.physics import laplacian
from hfdist.tasks.poisson import Poisson
from hfdist.tasks.poisson_cube import PoissonCube
from quick import mostly_slow
from toolkit.recorded import story

MODEL = MLP(hidden=(6,), activation="tanh")
TASK = Poisson(side=4, boundary_weight=3.0, test_side=7)
INTERIOR, POINTS = 16, 32
each_jacobian = pytest.mark.parametrize("jacobian", mostly_slow([True, False], {True}))


def batch_of(task=TASK, split="train"):
    examples = task.examples(split)
    entries = examples.gather(np.arange(len(examples)))
    return {name: jnp.asarray(entry) for name, entry in entries.items()}


def problem_of(task=TASK, model=MODEL):
    problem, params = task.problem(model, 0)
    return problem, optax.tree.cast(params, "float64")


def u_and_laplacian(params, x_BD):
    """Of v tanh(x W + a) + c, where tanh'' = -2 tanh (1 - tanh²)."""
    first, second = params["layers"][0], params["layers"][2]
    kernel = np.asarray(first["kernel"])
    t = np.tanh(np.asarray(x_BD) @ kernel + np.asarray(first["bias"]))
    out = np.asarray(second["kernel"])[:, 0]
    u = t @ out + np.asarray(second["bias"])[0]
    return u, (-2 * t * (1 - t**2) * (kernel**2).sum(0)) @ out


def test_the_laplacian_is_that_of_the_closed_form():
    x_BD = jax.random.uniform(jax.random.key(0), (9, 3))

    def u(x_BD):
        return jnp.sin(2 * x_BD[:, 0]) * jnp.exp(x_BD[:, 1]) + x_BD[:, 2] ** 3

    expected = -3 * jnp.sin(2 * x_BD[:, 0]) * jnp.exp(x_BD[:, 1]) + 6 * x_BD[:, 2]
    np.testing.assert_allclose(laplacian(u, x_BD), expected, rtol=1e-12)


@each_jacobian
def test_the_residuals_are_those_of_the_net_in_numpy(jacobian):
    batch = batch_of()
    problem, params = problem_of(replace(TASK, jacobian=jacobian))
    x = np.asarray(batch["inputs"])
    u, delta = u_and_laplacian(params, x)
    z = np.asarray(jax.jit(problem.predict)(params, batch))
    np.testing.assert_allclose(z[:INTERIOR], -delta[:INTERIOR], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(z[INTERIOR:], u[INTERIOR:], rtol=1e-10)
    star = np.sin(np.pi * x[:, 0]) * np.sin(np.pi * x[:, 1])
    residual = np.where(np.arange(POINTS) < INTERIOR, delta + 2 * np.pi**2 * star, u)
    squares = residual**2
    expected = squares[:INTERIOR].mean() + 3 * squares[INTERIOR:].mean()
    f = jax.jit(lambda w: quadratic(problem, w, batch).value)
    assert f(params) == pytest.approx(expected, rel=1e-10)


def test_the_points_are_inside_and_once_around():
    x = np.asarray(batch_of(Poisson())["inputs"])
    inside, around = x[:900], x[900:]
    assert len(x) == 1020 == len(np.unique(x.round(9), axis=0))
    assert np.all((inside > 0) & (inside < 1))
    assert np.all(np.any((around == 0) | (around == 1), axis=1))
    assert np.all((around >= 0) & (around <= 1))


def test_the_solution_has_no_residual():
    batch = batch_of()

    def u(x_BD):
        return jnp.prod(jnp.sin(jnp.pi * x_BD), -1)

    x_BD, interior = batch["inputs"], batch["interior"]
    z = jnp.where(interior, -laplacian(u, x_BD), u(x_BD))
    np.testing.assert_allclose(z, batch["targets"], atol=1e-12)


def test_padding_and_the_order_change_nothing():
    batch = batch_of()
    problem, params = problem_of()
    f = jax.jit(lambda batch: value_and_gradient(problem, params, batch)[0])
    places = np.append(np.random.default_rng(0).permutation(POINTS), [3, 30])
    padded = {name: entry[places] for name, entry in batch.items()}
    padded["weights"] = jnp.asarray([1.0] * POINTS + [0.0] * 2)
    assert f(padded) == pytest.approx(float(f(batch)), rel=1e-12)


@each_jacobian
def test_gauss_newton_products_and_gradient_against_dense_algebra(jacobian):
    batch = batch_of()
    problem, params = problem_of(replace(TASK, jacobian=jacobian))
    flat_N, unravel = ravel_pytree(params)

    def residuals(flat_N):
        """√(what each point counts) times its residual, from the closed forms."""
        first, second = (unravel(flat_N)["layers"][i] for i in (0, 2))
        t = jnp.tanh(batch["inputs"] @ first["kernel"] + first["bias"])
        curved = -2 * t * (1 - t**2) * jnp.sum(first["kernel"] ** 2, 0)
        out = second["kernel"][:, 0]
        z = jnp.where(batch["interior"], -curved @ out, t @ out + second["bias"])
        counts = jnp.where(batch["interior"], 1 / INTERIOR, 3 / (POINTS - INTERIOR))
        return jnp.sqrt(counts) * (z - batch["targets"])

    jacobian_BN = np.asarray(jax.jacobian(residuals)(flat_N))
    model = quadratic(problem, params, batch)
    expected = 2 * jacobian_BN.T @ np.asarray(residuals(flat_N))
    assert relative_error(model.gradient, expected) < 1e-12
    v_N = np.random.default_rng(1).normal(size=flat_N.size)
    product = model.product(unravel(jnp.asarray(v_N)))
    assert relative_error(product, 2 * jacobian_BN.T @ (jacobian_BN @ v_N)) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("curvature", ["hessian", "finite_difference"])
def test_a_written_jacobian_changes_no_other_curvature(curvature):
    batch = batch_of()
    v = problem_of()[1]
    products = [
        quadratic(problem, params, batch, curvature).product(v)
        for problem, params in (
            problem_of(replace(TASK, jacobian=jacobian)) for jacobian in (True, False)
        )
    ]
    assert relative_error(*products) < (1e-12 if curvature == "hessian" else 1e-6)


def test_a_written_jacobian_of_outputs_in_rows_and_mixed_dtypes():
    def predict(params, batch):
        hidden = jnp.tanh(batch["inputs"] @ params["first"]).astype(jnp.float32)
        return hidden @ params["second"]

    rng = np.random.default_rng(2)
    params = {
        "first": jnp.asarray(rng.normal(size=(3, 4))),
        "second": jnp.asarray(rng.normal(size=(4, 2)), jnp.float32),
    }
    batch = {
        "inputs": jnp.asarray(rng.normal(size=(5, 3))),
        "labels": jnp.asarray(rng.integers(0, 2, 5)),
    }
    tangents = jax.tree.map(jnp.ones_like, params)
    results = [
        jax.jvp(lambda params, f=f: f(params, batch), (params,), (tangents,))
        for f in (predict, with_jacobian(predict))
    ]
    for plain, written in zip(*results, strict=True):
        assert written.dtype == plain.dtype
        np.testing.assert_allclose(written, plain, rtol=1e-5)


def four_steps(method, devices):
    problem, params = problem_of()
    optimizer = method.build(problem, hfdist.make_mesh(devices))
    batch, state = batch_of(), optimizer.init(params)
    update = jax.jit(lambda s, p: optimizer.update(None, s, p, batch=batch))
    for _ in range(4):
        updates, state = update(state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(
    "method",
    [
        HessianFree(damping=0.1, learning_rate=1.0, cg=CG(max_steps=5)),
        pytest.param(
            Newton(damping=0.1, learning_rate=1.0, curvature="gauss_newton"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["hessian_free", "newton"],
)
def test_four_devices_make_the_steps_of_one(method):
    assert relative_error(four_steps(method, 4), four_steps(method, 1)) < 1e-9


def config_of(**settings):
    return Config(
        method=Newton(
            curvature="gauss_newton",
            damping=1.0,
            damping_rule="nielsen",
            learning_rate=1.0,
        ),
        model=MLP(hidden=(16,), activation="tanh"),
        data=Poisson(side=10, test_side=21),
        dtype="float64",
        batch_size=140,
        compilation_cache=None,
        **settings,
    )


@pytest.mark.slow
def test_a_short_run_learns_and_reports_numpys_relative_error(tmp_path):
    result = train(config_of(epochs=60, run_dir=tmp_path / "run"))
    assert result.test.figures["relative_error"] < 1e-2
    assert evaluate(tmp_path / "run")[1] == result.test


def test_the_relative_error_is_numpys():
    problem, params = problem_of()
    batch = batch_of(split="test")
    outputs = problem.predict(params, batch)
    means = {
        name: float(jnp.mean(figure))
        for name, figure in TASK.figures(outputs, batch).items()
    }
    along = np.linspace(0, 1, 7)
    x = np.stack([np.repeat(along, 7), np.tile(along, 7)], 1)
    u, _ = u_and_laplacian(params, x)
    star = np.sin(np.pi * x[:, 0]) * np.sin(np.pi * x[:, 1])
    expected = np.linalg.norm(u - star) / np.linalg.norm(star)
    assert TASK.report(means)["relative_error"] == pytest.approx(expected, rel=1e-10)


def test_the_training_points_have_no_relative_error():
    """Most of their outputs are -Δu."""
    problem, params = problem_of()
    batch = batch_of()
    assert TASK.figures(problem.predict(params, batch), batch) == {}
    assert TASK.report({"loss": 1.0}) == {}


@pytest.mark.slow
def test_a_run_continues_bit_for_bit(tmp_path):
    train(config_of(epochs=6, run_dir=tmp_path / "whole"))
    for epochs in (3, 6):
        train(config_of(epochs=epochs, run_dir=tmp_path / "parts"))
    assert story(tmp_path / "parts") == story(tmp_path / "whole")


def test_a_net_without_a_second_derivative_is_refused():
    with pytest.raises(UsageError, match=r"no second derivative.*activation tanh"):
        TASK.problem(MLP(), 0)


TASKS = {
    "cube": PoissonCube(axes=3, interior=40, boundary=12),
    "heat": Heat(interior=40, boundary=12, conductivity=0.3),
    "burgers": Burgers(interior=40, boundary=12, viscosity=0.05),
}
each_task = pytest.mark.parametrize("name", TASKS)


def test_the_operators_are_those_of_closed_forms():
    x_BD = jax.random.uniform(jax.random.key(1), (9, 2))
    t, x = x_BD.T

    def u(x_BD):
        return jnp.exp(0.7 * x_BD[:, 0]) * jnp.sin(2 * x_BD[:, 1])

    wave, slope = u(x_BD), 2 * jnp.exp(0.7 * t) * jnp.cos(2 * x)
    expected = {
        "cube": -(0.49 - 4) * wave,
        "heat": (0.7 + 0.3 * 4) * wave,
        "burgers": (0.7 + 0.05 * 4) * wave + wave * slope,
    }
    for name, task in TASKS.items():
        found = task.operator(u, x_BD)
        np.testing.assert_allclose(found, expected[name], rtol=1e-12, atol=1e-14)


@each_task
def test_the_solutions_solve_their_equations(name):
    """By central differences in numpy."""
    task, h = TASKS[name], 1e-3
    x = task.inside()[:, :]
    x = x[np.all((x > task.box[0] + h) & (x < task.box[1] - h), 1)]
    u, steps = task.solution(x), h * np.eye(task.dimensions)
    pairs = [(task.solution(x + e), task.solution(x - e)) for e in steps]
    slopes = [(up - down) / (2 * h) for up, down in pairs]
    curved = [(up - 2 * u + down) / h**2 for up, down in pairs]
    operator = {
        "cube": lambda: -sum(curved),
        "heat": lambda: slopes[0] - 0.3 * curved[1],
        "burgers": lambda: slopes[0] + u * slopes[1] - 0.05 * curved[1],
    }
    np.testing.assert_allclose(operator[name](), task.source(x), atol=2e-4)


def test_the_wave_of_burgers_is_as_steep_as_published():
    """∂u/∂x = -152.00516 at x = 0, t = 1.6037/π for ν = 0.01/π (Basdevant 1986)."""
    task, h = Burgers(viscosity=0.01 / np.pi), 1e-5
    t = 1.6037 / np.pi
    low, high = task.solution(np.array([[t, -h], [t, h]]))
    assert (high - low) / (2 * h) == pytest.approx(-152.00516, rel=1e-5)


@each_task
def test_points_are_drawn_from_the_seed_where_u_is_known(name):
    task = TASKS[name]
    inside, around = task.inside(), task.around()
    assert inside.shape == (40, task.dimensions)
    assert np.all((inside >= task.box[0]) & (inside <= task.box[1]))
    on_face = [around[:, d] == task.box[end, d] for d, end in task.faces]
    np.testing.assert_array_equal(np.sum(on_face, 1), 12 // len(task.faces))
    if name != "cube":  # u is not known at the end of time
        assert np.all(around[:, 0] < 1)
    np.testing.assert_array_equal(replace(task).inside(), inside)
    assert not np.any(replace(task, point_seed=1).inside() == inside)
    fresh = batch_of(replace(task, draws=3))
    assert len(fresh["inputs"]) == 156 == len(np.unique(fresh["inputs"], axis=0))


@pytest.mark.slow
@each_task
def test_a_net_learns_each_equation_from_fresh_points_and_from_fixed(name, tmp_path):
    for draws in (1, 30):
        task = replace(TASKS[name], interior=200, boundary=60, draws=draws)
        config = replace(
            config_of(epochs=30 // draws, run_dir=tmp_path / str(draws)),
            data=task,
            batch_size=260,
        )
        result = train(config)
        assert result.test.figures["relative_error"] < 0.2
