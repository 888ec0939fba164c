"""Steps in the span of the inputs against the same steps in all the params."""

import itertools
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hfdist
from cases import LM, LOSSES, loop, relative_error
from hfdist import CG, HessianFree, Newton
from hfdist.coordinates import gram, orthonormal
from hfdist.first_product import first_product, shorten
from hfdist.models.mlp import MLP
from hfdist.models.model import functional
from hfdist.parallel import collectives
from hfdist.quadratics import quadratic
from quick import mostly_slow

INPUTS, EXAMPLES, OUTPUTS = 14, 8, 3
TIGHT = CG(max_steps=300, rtol=1e-12)
METHODS = {
    "newton": Newton(damping=3.0),
    "newton_gauss_newton": Newton(damping=0.1, curvature="gauss_newton"),
    "newton_lm": Newton(damping=3.0, damping_rule=LM),
    "hf": HessianFree(damping=0.5, cg=CG(max_steps=5)),
    "hf_lm": HessianFree(damping=0.5, damping_rule=LM, cg=CG(max_steps=5)),
    "hf_hessian": HessianFree(damping=3.0, curvature="hessian", cg=CG(max_steps=5)),
    "hf_layerwise": HessianFree(
        damping=0.5, curvature="layerwise_gauss_newton", cg=CG(max_steps=5)
    ),
    "hf_tight": HessianFree(damping=0.5, cg=TIGHT),
}


def problem_of(hidden, loss="softmax_cross_entropy", activation="tanh"):
    model = MLP(hidden=hidden, activation=activation)
    predict, params = functional(model.build(INPUTS, OUTPUTS, seed=0))
    params = jax.tree.map(lambda a: a.astype(jnp.float64), params)
    return hfdist.Problem(predict, LOSSES[loss]), params


def batch_of(loss="softmax_cross_entropy", *, weighted=True, dtype=jnp.float64):
    """Two equal rows, a row of zeros, a dead input, and a weight of 0."""
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(EXAMPLES, INPUTS))
    inputs[1], inputs[2], inputs[:, 4] = inputs[0], 0, 0
    batch = {"inputs": jnp.asarray(inputs, dtype)}
    if loss == "softmax_cross_entropy":
        batch["labels"] = jnp.asarray(rng.integers(0, OUTPUTS, EXAMPLES))
    else:
        batch["targets"] = jnp.asarray(rng.uniform(size=(EXAMPLES, OUTPUTS)), dtype)
    if weighted:
        weights_B = rng.uniform(0.2, 3, EXAMPLES)
        weights_B[-1] = 0
        batch["weights"] = jnp.asarray(weights_B, dtype)
    return batch


def reduces(problem, params, batch):
    """Whether the problem has a first product to leave out."""
    return not isinstance(shorten(problem, params, batch, 1, lambda n, _: n), str)


def unreduced(method):
    """The method, solving for all the params."""
    return replace(method, input_reduction=False)


def assert_same(method, problem, params, batch, mesh=None, tolerance=1e-9):
    assert reduces(problem, params, batch)
    after, infos = loop(method.build(problem, mesh), params, batch)
    expected, expected_infos = loop(unreduced(method).build(problem), params, batch)
    assert relative_error(after, expected) < tolerance
    for info, other in zip(infos, expected_infos, strict=True):
        assert info.cg_steps == other.cg_steps
        assert bool(info.accepted) == bool(other.accepted)
        assert bool(info.indefinite) == bool(other.indefinite)
        for name in ("loss", "damping", "step_norm", "rho"):
            expected_value = pytest.approx(
                float(getattr(other, name)), rel=tolerance, nan_ok=True
            )
            assert float(getattr(info, name)) == expected_value


QUICK = {
    ("newton_lm", 1),
    ("hf", 2),
    ("hf_layerwise", 2),
    ("newton", 4),
    ("hf_lm", 4),
    ("hf_hessian", 4),
}


@pytest.mark.parametrize(
    ("name", "devices"), mostly_slow(itertools.product(METHODS, [1, 2, 4]), QUICK)
)
def test_reduced_steps_are_the_unreduced_ones(name, devices):
    problem, params = problem_of((6,))
    mesh = hfdist.make_mesh(devices)
    assert_same(METHODS[name], problem, params, batch_of(), mesh)


DEPTHS = {
    ("newton", "softmax_cross_entropy", (6, 4, 5)),
    ("newton", "squared_error", (5,)),
    ("hf", "log_cosh", ()),
}


@pytest.mark.parametrize(
    ("name", "loss", "widths"),
    mostly_slow(
        itertools.product(["newton", "hf"], LOSSES, [(), (5,), (6, 4, 5)]),
        DEPTHS,
    ),
)
def test_any_depth_and_loss(name, loss, widths):
    activation = "softplus" if len(widths) == 1 else "relu"
    problem, params = problem_of(widths, loss, activation)
    batch = batch_of(loss, weighted=loss == "squared_error")
    assert_same(METHODS[name], problem, params, batch)


@pytest.mark.parametrize("coordinates", [gram, orthonormal])
@pytest.mark.parametrize(
    "curvature", ["hessian", "gauss_newton", "layerwise_gauss_newton"]
)
def test_coordinates_against_the_dense_matrix(coordinates, curvature):
    """g, C d and ⟨d, d'⟩ of steps in the range, from numpy's full-size matrices."""
    problem, params = problem_of((6,))
    batch, alone = batch_of(), collectives(None)
    model = quadratic(problem, params, batch, curvature, alone)
    flat_N, unravel = ravel_pytree(params)
    c_NN = np.asarray(
        jax.vmap(lambda v: ravel_pytree(model.product(unravel(v)))[0])(
            jnp.eye(flat_N.size)
        )
    )
    shorter = shorten(problem, params, batch, 1, lambda n, _: n)
    first = first_product(shorter, problem.loss, params, batch, alone)
    space = coordinates(first, alone)
    reduced = quadratic(space.problem, space.params, batch, curvature, alone)
    s = space.back(reduced.gradient)
    d_N = np.asarray(ravel_pytree(space.expand(s))[0])
    assert d_N == pytest.approx(np.asarray(ravel_pytree(model.gradient)[0]), abs=1e-13)
    assert float(space.inner(s, s)) == pytest.approx(d_N @ d_N, rel=1e-12)
    c_s = space.back(reduced.product(space.into(s)))
    c_d_N = np.asarray(ravel_pytree(space.expand(c_s))[0])
    assert c_d_N == pytest.approx(c_NN @ d_N, abs=1e-13)


def test_a_gradient_from_outside_and_a_warm_start_are_solved_in_all_params():
    """They need not lie in the span of the inputs."""
    problem, params = problem_of((6,))
    batch = batch_of()
    rng = np.random.default_rng(4)
    outside = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), params)
    for method in (METHODS["newton"], METHODS["hf_tight"]):
        steps = [
            o.update(outside, o.init(params), params, batch=batch)[0]
            for o in (method.build(problem), unreduced(method).build(problem))
        ]
        assert relative_error(*steps) < 1e-9
    warm = HessianFree(damping=0.5, warm_start=0.9, cg=CG(max_steps=5))
    assert_same(warm, problem, params, batch)


def test_undamped_newton_is_the_pseudo_inverse_in_the_span():
    """On data of full rank, with no dead unit: the least-norm Newton step."""
    problem, params = problem_of(())
    rng = np.random.default_rng(5)
    batch = {
        "inputs": jnp.asarray(rng.normal(size=(EXAMPLES, INPUTS))),
        "targets": jnp.asarray(rng.normal(size=(EXAMPLES, OUTPUTS))),
    }
    problem = problem._replace(loss=LOSSES["squared_error"])
    method = Newton(damping=0.0, learning_rate=1.0, curvature="gauss_newton")
    # The bias makes 9 unknowns of 8 examples for each output: leave it out.
    predict = lambda p, b: b["inputs"] @ p["w"]  # noqa: E731
    weights = {"w": params["layers"][0]["kernel"]}
    optimizer = method.build(problem._replace(predict=predict))
    updates, _ = optimizer.update(None, optimizer.init(weights), weights, batch=batch)
    x_BD, t_BC = np.asarray(batch["inputs"]), np.asarray(batch["targets"])
    residual_BC = x_BD @ np.asarray(weights["w"]) - t_BC
    assert np.asarray(updates["w"]) == pytest.approx(
        -np.linalg.pinv(x_BD) @ residual_BC, abs=1e-9
    )


def skip_connection(params, batch):
    x = batch["inputs"]
    return jnp.tanh(x @ params["a"]) @ params["b"] + x @ params["c"]


def scaled_inputs(params, batch):
    return (batch["inputs"] - 0.5) @ params["c"]


def tied_kernel(params, batch):
    z = batch["inputs"] @ params["a"]
    return jnp.tanh(z) @ params["b"] + jnp.sum(params["a"])


@pytest.mark.parametrize("predict", [skip_connection, scaled_inputs, tied_kernel])
def test_networks_that_do_not_begin_with_one_product_are_left_alone(predict):
    shapes = {"a": (INPUTS, 4), "b": (4, OUTPUTS), "c": (INPUTS, OUTPUTS)}
    params = {
        name: jnp.asarray(np.random.default_rng(6).normal(size=shape)) / 4
        for name, shape in shapes.items()
    }
    problem = hfdist.Problem(predict, LOSSES["softmax_cross_entropy"])
    assert not reduces(problem, params, batch_of())
    _, infos = loop(METHODS["hf"].build(problem), params, batch_of())
    assert infos[-1].loss < infos[0].loss


def test_a_batch_as_large_as_the_inputs_is_left_alone():
    problem, params = problem_of((6,))
    batch = {k: jnp.concatenate([v, v]) for k, v in batch_of().items()}
    assert not reduces(problem, params, batch)


def test_float32_stays_float32_and_agrees():
    problem, params = problem_of((6,))
    params = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    batch = batch_of(dtype=jnp.float32)

    def step(optimizer):
        update = jax.jit(lambda s: optimizer.update(None, s, params, batch=batch)[0])
        return update(optimizer.init(params))

    for name in ("newton", "hf"):
        with jax.numpy_dtype_promotion("strict"):
            optimizer = METHODS[name].build(problem)
            updates = step(optimizer)
        expected = step(unreduced(METHODS[name]).build(problem))
        assert {a.dtype for a in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
        assert relative_error(updates, expected) < 1e-4


def test_the_switch_and_what_is_said_of_it():
    problem, params = problem_of((6,))
    batch = batch_of()
    total = sum(leaf.size for leaf in jax.tree.leaves(params))  # 14·6 + 6 + 6·3 + 3
    newton = METHODS["newton"]
    said = newton.explain(problem, params, batch)
    assert said == "solves in the span of the inputs: 75 unknowns, not 111"
    assert total == 111
    cases = {
        "input_reduction is off": (unreduced(newton), problem, batch),
        "the solver starts warm": (
            HessianFree(damping=4.0, warm_start=0.9),
            problem,
            batch,
        ),
        "memory for 814 numbers": (METHODS["hf"], problem, batch),
        "no matrix of inputs": (newton, problem, {"images": batch["inputs"]}),
        "more than once": (newton, problem._replace(predict=skip_connection), batch),
    }
    kernels = {"a": jnp.ones((14, 4)), "b": jnp.ones((4, 3)), "c": jnp.ones((14, 3))}
    for why, (method, other, data) in cases.items():
        given = kernels if other.predict is skip_connection else params
        said = method.explain(other, given, data)
        assert said.startswith("solves for all")
        assert why in said


def matrix_products(problem, params, batch, method):
    """The parameters of all matrix products with X, the batch's inputs."""
    optimizer = method.build(problem)
    program = jax.make_jaxpr(lambda s, p: optimizer.update(None, s, p, batch=batch))
    equations = program(optimizer.init(params), params).jaxpr.eqns
    return [e.params for e in equations if e.primitive.name == "dot_general"]


def test_the_product_left_out_is_made_as_the_model_makes_it():
    def predict(params, batch):
        return jnp.dot(
            batch["inputs"],
            params["w"],
            precision=jax.lax.Precision.HIGH,
            preferred_element_type=jnp.float64,
        )

    problem = hfdist.Problem(predict, LOSSES["softmax_cross_entropy"])
    params = {"w": jnp.ones((INPUTS, OUTPUTS))}
    first, *_ = matrix_products(problem, params, batch_of(), METHODS["newton"])
    assert first["precision"] == (jax.lax.Precision.HIGH,) * 2
    assert first["preferred_element_type"] == jnp.float64


@pytest.mark.parametrize("devices", mostly_slow([1, 4], [4]))
@pytest.mark.parametrize("name", ["newton", "hf"])
def test_a_kernel_that_is_named_need_not_be_found(name, devices):
    """Its product is inside a jit of the model's own."""
    model = MLP(hidden=(6,), activation="tanh")
    _, params = functional(model.build(60, OUTPUTS, seed=0))
    params = jax.tree.map(lambda a: a.astype(jnp.float64), params)
    first, last = params["layers"][0], params["layers"][2]
    params = {"w": first["kernel"], "b": first["bias"], "v": last["kernel"]}

    @jax.jit
    def behind(params, batch):
        del batch
        return jnp.tanh(params["w"] + params["b"]) @ params["v"]

    rng = np.random.default_rng(7)
    batch = batch_of() | {"inputs": jnp.asarray(rng.normal(size=(EXAMPLES, 60)))}
    loss = LOSSES["softmax_cross_entropy"]
    named = hfdist.Problem(hfdist.KernelFirst("['w']", behind), loss)
    hidden = hfdist.Problem(jax.jit(named.predict), loss)
    method, mesh = METHODS[name], hfdist.make_mesh(devices)
    assert "span" in method.explain(named, params, batch)
    assert method.explain(hidden, params, batch).startswith("solves for all")
    after, _ = loop(method.build(named, mesh), params, batch)
    expected, _ = loop(method.build(hidden), params, batch)
    assert relative_error(after, expected) < 1e-9


def test_a_kernel_that_is_not_there_is_refused():
    predict = hfdist.KernelFirst("w", lambda params, batch: params["w"])
    problem = hfdist.Problem(predict, LOSSES["softmax_cross_entropy"])
    with pytest.raises(ValueError, match=r"KernelFirst names 'w'.*they have \['w'\]"):
        METHODS["newton"].explain(problem, {"w": jnp.ones((14, 3))}, batch_of())


SHAPES = [(10,), (128,), (500, 250), (1,), ()]


@pytest.mark.parametrize(
    ("hidden", "examples"),
    [
        *itertools.product(SHAPES, [256]),
        *(pytest.param(s, 64, marks=pytest.mark.slow) for s in SHAPES),
        pytest.param((4096, 4096), 256, marks=pytest.mark.slow),
    ],
)
def test_it_never_costs_memory(hidden, examples):
    """Temporaries of a step of ten CG steps, by XLA's own count."""
    predict, params = functional(MLP(hidden=hidden).build(784, 10, 0))
    problem = hfdist.Problem(predict, LOSSES["softmax_cross_entropy"])
    batch = {
        "inputs": jnp.ones((examples, 784), jnp.float32),
        "labels": jnp.arange(examples) % 10,
    }

    def temporaries(method):
        optimizer = method.build(problem)
        update = jax.jit(lambda s, p, b: optimizer.update(None, s, p, batch=b))
        lowered = update.lower(optimizer.init(params), params, batch)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    method = HessianFree(damping=4.0, cg=CG(max_steps=10))
    assert temporaries(method) <= temporaries(unreduced(method))


def test_what_jax_may_break_breaks_no_method():
    """jax.extend is no stable interface."""
    program = """
import sys
sys.modules["jax.extend"] = sys.modules["jax.extend.core"] = None
import jax.numpy as jnp, hfdist
problem = hfdist.Problem(lambda p, b: b["inputs"] @ p, hfdist.losses.squared_error)
batch = {"inputs": jnp.ones((2, 5)), "targets": jnp.ones((2, 1))}
hf = hfdist.HessianFree(damping=4.0)
for method in (hfdist.SGD(), hf, hfdist.Newton(damping=1.0)):
    optimizer, params = method.build(problem), jnp.zeros((5, 1))
    _, state = optimizer.update(None, optimizer.init(params), params, batch=batch)
    assert state.info.accepted
    print(method.explain(problem, params, batch))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("this JAX has no jax.extend.core") == 2
