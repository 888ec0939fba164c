"""Models of other libraries and of other kinds, each against dense float64 algebra.

The truth needs predict, the loss and JAX alone: the Jacobian of all the outputs and the
Hessian of the mean loss in them, both dense. It couples examples where the model does.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import equinox
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import hfdist
from cases import relative_error
from hfdist import CG, HessianFree, Newton, Problem, losses
from quick import mostly_slow

EXAMPLES, DEVICES = 8, 4
DTYPES = (jnp.float64, jnp.float32)
# Relative errors.
PRODUCT = {jnp.float64: 1e-9, jnp.float32: 1e-4}
STEP = {jnp.float64: 1e-8, jnp.float32: 1e-4}
MESH = 1e-10
BFLOAT16_LOSS, BFLOAT16_STEP = 1e-2, 0.05  # the worst measured: 0.003 and 0.02
# What mixes examples must step otherwise on four devices, by at least this much.
OTHERWISE = 1e-2

TIGHT = CG(max_steps=200, rtol=1e-12)
GAUSS_NEWTON = HessianFree(damping=1.0, learning_rate=0.5, cg=TIGHT)
HESSIAN = HessianFree(damping=50.0, learning_rate=0.5, cg=TIGHT, curvature="hessian")
THREE_CG_STEPS = replace(GAUSS_NEWTON, cg=CG(max_steps=3, rtol=0.0))
TRUNCATED = replace(GAUSS_NEWTON, cg=CG())
EXACT = Newton(damping=1.0, learning_rate=0.5, curvature="gauss_newton")


class Model(NamedTuple):
    predict: Callable[[Any, Any], Any]
    params: Any  # float64, but of numbers that float32 holds; so are the batch's
    batch: dict[str, Any]
    loss: Callable[[Any, Any], Any] = losses.softmax_cross_entropy
    replicated: tuple[str, ...] = ()

    @property
    def problem(self) -> Problem:
        return Problem(self.predict, self.loss)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def classes(seed, count, *shape):
    return jnp.asarray(np.random.default_rng(seed).integers(0, count, shape), jnp.int32)


def labelled(*shape):
    """A batch of random inputs and three classes."""
    inputs = jnp.asarray(normal(1, EXAMPLES, *shape))
    return {"inputs": inputs, "labels": classes(2, 3, EXAMPLES)}


# The models.


class Convolutional(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 2, (3, 3), strides=2, rngs=rngs)
        self.linear = nnx.Linear(18, 3, rngs=rngs)

    def __call__(self, images):
        features = jax.nn.softplus(self.conv(images))
        return self.linear(features.reshape(*images.shape[:-3], 18))


def convolution():
    graphdef, params = nnx.split(Convolutional(nnx.Rngs(0)), nnx.Param)
    return Model(
        lambda params, batch: nnx.merge(graphdef, params)(batch["inputs"]),
        params,
        labelled(5, 5, 1),
    )


class Normalised(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 5, rngs=rngs)
        # With the usual 1e-5 the sign alone is left of the two examples of a device.
        self.norm = nnx.BatchNorm(5, momentum=0.5, epsilon=0.1, rngs=rngs)
        self.second = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, inputs, running):
        hidden = self.norm(self.first(inputs), use_running_average=running)
        return self.second(jnp.tanh(hidden))


def batch_norm(running):
    batch = labelled(4)
    module = Normalised(nnx.Rngs(0))
    module(batch["inputs"], running=False)  # fills the averages
    graphdef, params, averages = nnx.split(module, nnx.Param, ...)

    def predict(params, batch):
        inputs = batch["inputs"]
        kept = optax.tree.cast(averages, jnp.promote_types(inputs.dtype, jnp.float32))
        return nnx.merge(graphdef, params, kept, copy=True)(inputs, running)

    return Model(predict, params, batch)


class Dropping(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)
        self.second = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, inputs, key):
        hidden = jnp.tanh(self.first(inputs))
        return self.second(self.dropout(hidden, rngs=nnx.Rngs(dropout=key)))


def dropout_by_example():
    graphdef, params = nnx.split(Dropping(nnx.Rngs(0)), nnx.Param)

    def predict(params, batch):
        module = nnx.merge(graphdef, params)
        return jax.vmap(module)(batch["inputs"], batch["dropout"])

    keys = jax.random.split(jax.random.key(3), EXAMPLES)
    return Model(predict, params, {**labelled(4), "dropout": keys})


def dropout_by_one_key():
    """Each device draws for its rows from the same key: other masks than one device."""
    graphdef, params = nnx.split(Dropping(nnx.Rngs(0)), nnx.Param)
    return Model(
        lambda params, batch: nnx.merge(graphdef, params)(
            batch["inputs"], batch["key"]
        ),
        params,
        {**labelled(4), "key": jax.random.key(3)},
        replicated=("key",),
    )


def linen_mlp():
    """So many inputs that the step is solved for in their span."""
    module = linen.Sequential([linen.Dense(4), jnp.tanh, linen.Dense(3)])
    batch = labelled(24)
    params = module.init(jax.random.key(0), batch["inputs"])
    return Model(lambda p, batch: module.apply(p, batch["inputs"]), params, batch)


def equinox_mlp():
    module = equinox.nn.MLP(5, 3, 4, 2, jnp.tanh, key=jax.random.key(0))
    params, static = equinox.partition(module, equinox.is_array)

    def predict(params, batch):
        return jax.vmap(equinox.combine(params, static))(batch["inputs"])

    return Model(predict, params, labelled(5))


TOKENS, VOCABULARY, WIDTH = 4, 5, 4


def attention(layer, x_TW):
    q_TW, k_TW, v_TW = jnp.split(x_TW @ layer["qkv"], 3, -1)
    scores_TT = jnp.where(
        jnp.tri(TOKENS, dtype=bool), q_TW @ k_TW.T / WIDTH**0.5, -jnp.inf
    )
    return jax.nn.softmax(scores_TT) @ v_TW @ layer["out"]


def normed(x_TW):
    return x_TW * jax.lax.rsqrt(jnp.mean(x_TW**2, -1, keepdims=True) + 1e-3)


def transformer_logits(params, tokens_T):
    x_TW = params["embedding"][tokens_T] + params["positions"]
    for layer in params["layers"]:
        x_TW += attention(layer, normed(x_TW))
        x_TW += jax.nn.gelu(normed(x_TW) @ layer["up"]) @ layer["down"]
    return normed(x_TW) @ params["embedding"].T


def token_cross_entropy(logits_BTV, batch):
    losses_BT = optax.softmax_cross_entropy_with_integer_labels(
        logits_BTV, batch["next"]
    )
    return jnp.sum(losses_BT, -1)


def transformer():
    shapes = {
        "embedding": (VOCABULARY, WIDTH),
        "positions": (TOKENS, WIDTH),
        "layers": [
            {"qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH)}
            | {"up": (WIDTH, 3), "down": (3, WIDTH)}
            for _ in range(2)
        ],
    }
    tokens = classes(4, VOCABULARY, EXAMPLES, TOKENS + 1)
    return Model(
        lambda params, batch: jax.vmap(functools.partial(transformer_logits, params))(
            batch["inputs"]
        ),
        zeros(shapes),
        {"inputs": tokens[:, :-1], "next": tokens[:, 1:]},
        token_cross_entropy,
    )


def recurrent():
    shapes = {"in": (3, 5), "hidden": (5, 5), "bias": (5,), "out": (5, 2)}

    def predict(params, batch):
        def cell(h_BH, x_BD):
            h_BH = x_BD @ params["in"] + h_BH @ params["hidden"] + params["bias"]
            return jnp.tanh(h_BH), None

        x_TBD = jnp.swapaxes(batch["inputs"], 0, 1)
        h_BH = jnp.zeros((x_TBD.shape[1], 5), params["bias"].dtype)
        h_BH, _ = jax.lax.scan(cell, h_BH, x_TBD)
        return h_BH @ params["out"]

    batch = {
        "inputs": jnp.asarray(normal(1, EXAMPLES, 6, 3)),
        "targets": jnp.asarray(normal(2, EXAMPLES, 2)),
    }
    return Model(predict, zeros(shapes), batch, losses.squared_error)


def lora():
    """Low-rank changes of weights that are closed over."""
    first_DH, second_HC = jnp.asarray(normal(5, 6, 5)), jnp.asarray(normal(6, 5, 3))
    shapes = [{"a": (6, 2), "b": (2, 5)}, {"a": (5, 2), "b": (2, 3)}]

    def predict(params, batch):
        first, second = (layer["a"] @ layer["b"] for layer in params)
        return jnp.tanh(batch["inputs"] @ (first_DH + first)) @ (second_HC + second)

    batch = labelled(6)
    batch["targets"] = jax.nn.one_hot(batch.pop("labels"), 3)
    return Model(predict, zeros(shapes), batch, losses.sigmoid_cross_entropy)


def physics_informed():
    """u'' + f = 0 at points, for u a network; a residual is what predict returns."""
    shapes = {"first": (6,), "bias": (6,), "second": (6, 6), "last": (6,)}

    def u(params, x):
        hidden_H = jnp.tanh(x * params["first"] + params["bias"])
        return jnp.tanh(hidden_H @ params["second"]) @ params["last"]

    def residual(params, x, f):
        slope = jax.grad(u, argnums=1)
        _, second = jax.jvp(lambda x: slope(params, x), (x,), (jnp.ones_like(x),))
        return second + f

    def predict(params, batch):
        residuals = jax.vmap(functools.partial(residual, params))
        return residuals(batch["points"], batch["force"])[:, None]

    points_B = jnp.linspace(-1, 1, EXAMPLES, dtype=jnp.float32)
    batch = {
        "points": points_B,
        "force": jnp.sin(3 * points_B),
        "targets": jnp.zeros((EXAMPLES, 1), jnp.float32),
    }
    return Model(predict, zeros(shapes), batch, losses.squared_error)


def zeros(shapes):
    return jax.tree.map(jnp.zeros, shapes, is_leaf=lambda x: isinstance(x, tuple))


MODELS = {
    "convolution": convolution,
    "batch_norm_inference": functools.partial(batch_norm, running=True),
    "batch_norm_training": functools.partial(batch_norm, running=False),
    "dropout_by_example": dropout_by_example,
    "dropout_by_one_key": dropout_by_one_key,
    "linen": linen_mlp,
    "equinox": equinox_mlp,
    "transformer": transformer,
    "recurrent": recurrent,
    "lora": lora,
    "physics_informed": physics_informed,
}
# An example's outputs depend on what others its device has.
MIXING = ("batch_norm_training", "dropout_by_one_key")
SOME = ("convolution", "batch_norm_training", "transformer", "lora")
some_models = pytest.mark.parametrize("name", mostly_slow(MODELS, SOME))
# test_dtypes.py has float32's own quick tests.
each_dtype = pytest.mark.parametrize(
    "dtype",
    [pytest.param(d, marks=[pytest.mark.slow] * (d == jnp.float32)) for d in DTYPES],
    ids=lambda d: d.__name__,
)


@functools.cache
def model_of(name) -> Model:
    """A model, off the zeros and symmetries that it starts at."""
    model = MODELS[name]()
    rng = np.random.default_rng(7)
    params = jax.tree.map(lambda a: a + 0.4 * rng.normal(size=a.shape), model.params)
    params, batch = cast(cast((params, model.batch), jnp.float32), jnp.float64)
    return model._replace(params=params, batch=batch)


def cast(tree, dtype):
    """The tree with its floating leaves in a dtype; keys and labels stay.

    By NumPy: JAX would compile a program for each shape.
    """
    return jax.tree.map(
        lambda a: (
            np.asarray(a).astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a
        ),
        tree,
    )


# The truth.


class Dense(NamedTuple):
    """The mean loss, its gradient and its matrices, without damping."""

    value: np.ndarray
    gradient: np.ndarray
    gauss_newton: np.ndarray
    hessian: np.ndarray

    def step(self, curvature, damping):
        """-½ (C + λI)⁻¹ g."""
        matrix_NN = getattr(self, curvature) + damping * np.eye(self.gradient.size)
        return -0.5 * np.linalg.solve(matrix_NN, self.gradient)


@functools.cache
def dense(name, rounded_to=jnp.float64, devices=1) -> Dense:
    """The truth where params and batch are rounded to a dtype, by float64 algebra.

    With devices, each predicts for its own rows of the batch.
    """
    model = model_of(name)
    params, batch = (
        cast(cast(tree, rounded_to), jnp.float64)
        for tree in (model.params, model.batch)
    )
    return Dense(*dense_algebra(name, devices)(ravel_pytree(params)[0], batch))


@functools.cache
def dense_algebra(name, devices):
    """(flat params, batch) -> the fields of Dense."""
    model = model_of(name)
    _, unravel = ravel_pytree(model.params)

    def outputs(w_N, batch):
        shares = [rows(batch, model, device, devices) for device in range(devices)]
        return jnp.concatenate([model.predict(unravel(w_N), s) for s in shares])

    def mean_loss(z_Z, batch, shape):
        return jnp.mean(model.loss(z_Z.reshape(shape), batch))

    @jax.jit
    def algebra(w_N, batch):
        z = outputs(w_N, batch)
        loss = functools.partial(mean_loss, batch=batch, shape=z.shape)

        def value(w_N):
            return loss(outputs(w_N, batch).ravel())

        j_ZN = jax.jacobian(lambda w: outputs(w, batch).ravel())(w_N)
        h_ZZ = jax.hessian(loss)(z.ravel())
        gradient_N = jax.grad(value)(w_N)
        return value(w_N), gradient_N, j_ZN.T @ h_ZZ @ j_ZN, jax.hessian(value)(w_N)

    return lambda *arguments: map(np.asarray, algebra(*arguments))


def rows(batch, model, device, devices):
    """A device's share of a batch."""
    share = EXAMPLES // devices
    mine = slice(device * share, (device + 1) * share)
    return {k: v if k in model.replicated else v[mine] for k, v in batch.items()}


# The checks.


def update(method, model, dtype=jnp.float64, mesh=None):
    """The first update of a method, and the state after it."""
    optimizer = method.build(model.problem, mesh=mesh, replicated=model.replicated)
    params, batch = cast((model.params, model.batch), dtype)
    return jax.jit(lambda s, p, b: optimizer.update(None, s, p, batch=b))(
        optimizer.init(params), params, batch
    )


def dtypes(tree):
    return {leaf.dtype for leaf in jax.tree.leaves(tree)}


@each_dtype
@some_models
def test_products_are_those_of_the_dense_matrices(name, dtype):
    model, truth = model_of(name), dense(name)
    params, batch = cast((model.params, model.batch), dtype)
    v_N = normal(8, truth.gradient.size)
    v = cast(ravel_pytree(model.params)[1](v_N.astype(np.float64)), dtype)

    @jax.jit
    def both(params, batch, v):
        gauss_newton = hfdist.quadratic(model.problem, params, batch, "gauss_newton")
        hessian = hfdist.quadratic(model.problem, params, batch, "hessian")
        fields = gauss_newton.value, gauss_newton.gradient, hessian.gradient
        return *fields, gauss_newton.product(v), hessian.product(v)

    actual = both(params, batch, v)
    matrices = truth.gauss_newton, truth.hessian
    expected = truth.value, truth.gradient, truth.gradient, *(m @ v_N for m in matrices)
    for a, b in zip(actual, expected, strict=True):
        assert dtypes(a) == {jnp.dtype(dtype)}
        assert relative_error(a, b) < PRODUCT[dtype]


@each_dtype
@some_models
def test_a_step_is_the_dense_solve(name, dtype):
    step, state = update(GAUSS_NEWTON, model_of(name), dtype)
    assert dtypes(step) == {jnp.dtype(dtype)}
    assert relative_error(step, dense(name).step("gauss_newton", 1.0)) < STEP[dtype]
    assert state.info.loss == pytest.approx(
        float(dense(name).value), rel=PRODUCT[dtype]
    )


@pytest.mark.parametrize(
    "name", mostly_slow(MODELS, ["dropout_by_example", "physics_informed", "recurrent"])
)
def test_a_step_with_the_hessian_is_the_dense_solve(name):
    step, state = update(HESSIAN, model_of(name))
    assert state.info.accepted
    assert relative_error(step, dense(name).step("hessian", 50.0)) < STEP[jnp.float64]


@pytest.mark.parametrize(
    "name",
    mostly_slow([m for m in MODELS if m not in MIXING], ["convolution", "transformer"]),
)
def test_a_step_on_four_devices_is_that_on_one(name):
    on_one, _ = update(THREE_CG_STEPS, model_of(name))
    on_four, _ = update(THREE_CG_STEPS, model_of(name), mesh=hfdist.make_mesh(DEVICES))
    assert relative_error(on_four, on_one) < MESH


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *(pytest.param(name, GAUSS_NEWTON, id=name) for name in MIXING),
        pytest.param(MIXING[0], EXACT, id=f"{MIXING[0]}-newton"),
    ],
)
def test_a_device_mixes_its_own_examples_alone(name, method):
    step, _ = update(method, model_of(name), mesh=hfdist.make_mesh(DEVICES))
    expected = dense(name, devices=DEVICES).step("gauss_newton", 1.0)
    assert relative_error(step, expected) < STEP[jnp.float64]
    assert relative_error(step, dense(name).step("gauss_newton", 1.0)) > OTHERWISE


@pytest.mark.parametrize(
    "name", mostly_slow(MODELS, ["batch_norm_training", "transformer"])
)
def test_bfloat16_params_in_a_scan(name):
    model, truth = model_of(name), dense(name, jnp.bfloat16)
    optimizer = TRUNCATED.build(model.problem, replicated=model.replicated)
    params, batch = cast((model.params, model.batch), jnp.bfloat16)

    def body(carry, _):
        params, state = carry
        step, state = optimizer.update(None, state, params, batch=batch)
        return (optax.apply_updates(params, step), state), (step, state.info)

    carry = params, optimizer.init(params)
    _, (steps, infos) = jax.jit(lambda c: jax.lax.scan(body, c, length=2))(carry)
    assert dtypes(steps) == {jnp.dtype(jnp.bfloat16)}
    assert infos.loss.dtype == jnp.float32
    assert infos.accepted.all()
    assert infos.loss[1] < infos.loss[0]
    assert infos.loss[0] == pytest.approx(float(truth.value), rel=BFLOAT16_LOSS)
    first = cast(jax.tree.map(lambda leaf: leaf[0], steps), jnp.float64)
    assert relative_error(first, truth.step("gauss_newton", 1.0)) < BFLOAT16_STEP


def test_the_wide_model_is_solved_in_the_span_of_its_inputs():
    """So that the table has both kinds of solve."""
    model = model_of("linen")
    words = GAUSS_NEWTON.explain(model.problem, model.params, model.batch)
    assert "51 unknowns" in words


# What does not fit is refused in words.


def a_loss_for_each_token():
    model = model_of("transformer")
    return model._replace(
        loss=lambda z_BTV, batch: optax.softmax_cross_entropy_with_integer_labels(
            z_BTV, batch["next"]
        )
    )


def a_key_that_is_not_named_as_replicated():
    return model_of("dropout_by_one_key")._replace(replicated=())


def keys_among_the_params():
    model = model_of("dropout_by_one_key")
    return model._replace(params={"net": model.params, "key": model.batch["key"]})


def an_equinox_model_that_is_not_partitioned():
    module = equinox.nn.MLP(5, 3, 4, 2, jnp.tanh, key=jax.random.key(0))
    return model_of("equinox")._replace(params=module)


MISFITS = {
    a_loss_for_each_token: "one number per example",
    a_key_that_is_not_named_as_replicated: r"batch\['key'\] has shape \(\)",
    keys_among_the_params: r"params\['key'\] is key<fry>: every leaf",
    an_equinox_model_that_is_not_partitioned: "activation is PjitFunction: every leaf",
}


@pytest.mark.parametrize("misfit", MISFITS, ids=lambda misfit: misfit.__name__)
def test_a_misfit_is_refused(misfit):
    model = misfit()
    optimizer = GAUSS_NEWTON.build(
        model.problem, hfdist.make_mesh(DEVICES), model.replicated
    )

    def first_update():
        state = optimizer.init(model.params)
        return optimizer.update(None, state, model.params, batch=model.batch)

    with pytest.raises(hfdist.UsageError, match=MISFITS[misfit]):
        jax.eval_shape(first_update)
