"""What a batch may be, on one device and on four, against numpy."""

from collections import OrderedDict
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze
from jax.sharding import NamedSharding, PartitionSpec

import hfdist
from cases import Case, relative_error
from hfdist import CG, SGD, HessianFree, Newton
from hfdist.batches import spread
from quick import mostly_slow

EXAMPLES, FEATURES, OUTPUTS = 8, 12, 3
MESH = hfdist.make_mesh(4)
RNG = np.random.default_rng(0)
X, X2 = RNG.normal(size=(2, EXAMPLES, FEATURES))
T, I = RNG.normal(size=(EXAMPLES, OUTPUTS)), np.arange(EXAMPLES)  # noqa: E741
LABELS = RNG.integers(0, OUTPUTS, EXAMPLES)
W, U = RNG.normal(size=(2, FEATURES, OUTPUTS))
METHODS = {
    "cg": HessianFree(damping=1.0, cg=CG(max_steps=3, rtol=0.0)),
    "dense": Newton(damping=1.0),
    "sgd": SGD(),
}
each_method = pytest.mark.parametrize(
    "method",
    mostly_slow(METHODS.values(), [METHODS["cg"], METHODS["sgd"]]),
    ids=METHODS,
)
each_mesh = pytest.mark.parametrize(
    "mesh", mostly_slow([None, MESH], [MESH]), ids=["one", "four"]
)


class Pair(NamedTuple):
    id: Any
    x: Any


def second(aux):
    return {Pair: lambda: aux.x, tuple: lambda: aux[1]}.get(
        type(aux), lambda: aux["x"]
    )()


def predict(params, batch):
    return batch["inputs"] @ params["w"] + second(batch["aux"]) @ params["u"]


TWO_INPUTS = hfdist.Problem(predict, hfdist.losses.squared_error)
BATCHES = {
    # "inputs" is the second key, and the third leaf.
    "nested": {"aux": {"id": I, "x": X2}, "inputs": X, "targets": T},
    "unsorted": OrderedDict(targets=T, inputs=X, aux={"x": X2, "id": I}),
    "none": {"aux": {"id": None, "x": X2}, "a": None, "inputs": X, "targets": T},
    "tuple": {"aux": (I, X2), "inputs": X, "targets": T},
    "named tuple": {"aux": Pair(I, X2), "inputs": X, "targets": T},
    "frozen": freeze({"aux": {"id": I, "x": X2}, "inputs": X, "targets": T}),
}


def update(method, problem, params, batch, mesh=None, replicated=()):
    optimizer = method.build(problem, mesh, replicated=replicated)
    params, batch = jax.tree.map(jnp.asarray, (params, batch))
    step = jax.jit(lambda s, p, b: optimizer.update(None, s, p, batch=b))
    return step(optimizer.init(params), params, batch)


@each_method
@each_mesh
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_entries_are_found_by_their_paths(batch, mesh, method):
    params = {"u": U, "w": W}
    step, state = update(method, TWO_INPUTS, params, batch, mesh)
    loss = np.mean(np.sum((X @ W + X2 @ U - T) ** 2, 1))
    assert state.info.loss == pytest.approx(loss, rel=1e-12)
    joined = {"inputs": np.hstack([X2, X]), "targets": T}
    linear = hfdist.Problem(lambda p, b: b["inputs"] @ p, hfdist.losses.squared_error)
    expected, _ = update(method, linear, np.vstack([U, W]), joined)
    assert relative_error(step, expected) < 1e-12


@pytest.mark.parametrize("batch", [(X, T), Pair(X, T), [X, T], X], ids=lambda b: "")
def test_a_batch_without_names_is_refused(batch):
    optimizer = METHODS["cg"].build(TWO_INPUTS)
    params = {"u": jnp.asarray(U), "w": jnp.asarray(W)}
    with pytest.raises(ValueError, match="pass a dict with entries by name"):
        optimizer.update(None, optimizer.init(params), params, batch=batch)


# Over a mesh: one row per example, or the user says otherwise.


def weighted_by_class(z_BC, batch):
    losses_B = hfdist.losses.softmax_cross_entropy(z_BC, batch)
    return batch["class_weights"][batch["labels"]] * losses_B


CLASSES = hfdist.Problem(lambda p, b: b["inputs"] @ p, weighted_by_class)
CLASS_BATCH = {"inputs": X, "labels": LABELS, "class_weights": np.array([1.0, 5, 2, 9])}


@each_method
def test_a_replicated_entry_is_whole_on_every_device(method):
    names = ("class_weights",)
    one, _ = update(method, CLASSES, W, CLASS_BATCH)
    four, _ = update(method, CLASSES, W, CLASS_BATCH, MESH, names)
    assert relative_error(four, one) < 1e-13


@pytest.mark.parametrize(
    "entry",
    [np.ones(4), np.float64(3), jax.random.key(0), {"deep": np.ones((20, 2))}],
    ids=["class weights", "scalar", "key", "nested"],
)
def test_what_has_no_row_for_each_example_is_refused_by_name(entry):
    batch = {"inputs": X, "labels": LABELS, "other": entry}
    problem = CLASSES._replace(loss=hfdist.losses.softmax_cross_entropy)
    with pytest.raises(ValueError, match=r"batch\['other'\].*replicated=\('other',\)"):
        update(METHODS["cg"], problem, W, batch, MESH)
    update(METHODS["cg"], problem, W, batch, MESH, ("other",))


def test_points_of_two_kinds_are_refused_as_they_are():
    """20 interior and 8 boundary points, of which four devices make 20/4 + 8/4."""
    problem = hfdist.Problem(
        lambda p, b: jnp.concatenate([b["inputs"] @ p, b["boundary"] @ p]),
        lambda z, b: jnp.sum(z**2, -1),
    )
    batch = {"inputs": RNG.normal(size=(20, FEATURES)), "boundary": X}
    _, state = update(METHODS["cg"], problem, W, batch)
    rows = np.vstack([batch["inputs"], X])
    assert state.info.loss == pytest.approx(np.mean(np.sum((rows @ W) ** 2, 1)))
    with pytest.raises(ValueError, match=r"batch\['boundary'\] has shape \(8, 12\)"):
        update(METHODS["cg"], problem, W, batch, MESH)
    with pytest.raises(ValueError, match=r"shape \(13,\) for 5 examples: over a mesh"):
        update(METHODS["cg"], problem, W, batch, MESH, ("boundary",))


@pytest.mark.parametrize(
    ("replicated", "message"),
    [
        (("class_weigths",), r"replicated names \['class_weigths'\], which the batch"),
        ("class_weights", r"use \('class_weights',\)"),
    ],
)
def test_a_misspelt_replicated_entry_is_refused(replicated, message):
    with pytest.raises(ValueError, match=message):
        update(METHODS["cg"], CLASSES, W, CLASS_BATCH, MESH, replicated)


@each_method
@pytest.mark.parametrize("placed", [False, True], ids=["unplaced", "placed"])
def test_a_mesh_with_explicit_axes(method, placed):
    """What jax.make_mesh makes, with arrays that are on it and that are not."""
    mesh = jax.make_mesh((4,), ("data",))
    problem = hfdist.Problem(lambda p, b: b["inputs"] @ p, hfdist.losses.squared_error)
    batch = {"inputs": jnp.asarray(X), "targets": jnp.asarray(T)}
    params = jnp.asarray(W)
    expected, _ = update(method, problem, params, batch)
    if placed:
        batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
        params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    optimizer = method.build(problem, mesh)
    state = optimizer.init(params)
    if placed:
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    step = jax.jit(lambda s, p, b: optimizer.update(None, s, p, batch=b))
    first, state = step(state, params, batch)
    assert relative_error(first, expected) < 1e-13
    step(state, params, batch)  # takes its own state back


# Weights and labels.


@pytest.mark.parametrize("weights", [np.ones((EXAMPLES, 1)), np.float64(1), np.ones(1)])
def test_weights_of_another_shape_are_refused(weights):
    case = Case("softmax_cross_entropy", examples=EXAMPLES)
    batch = {**case.batch, "weights": jnp.asarray(weights)}
    for method in METHODS.values():
        with pytest.raises(ValueError, match="give one weight per example"):
            update(method, case.problem, case.params, batch)


@each_method
@each_mesh
@pytest.mark.parametrize("label", [-1, OUTPUTS, 255])
def test_a_label_that_is_no_class_refuses_the_step(label, mesh, method):
    case = Case("softmax_cross_entropy", examples=EXAMPLES)
    batch = {**case.batch, "labels": case.batch["labels"].at[2].set(label)}
    step, state = update(method, case.problem, case.params, batch, mesh)
    assert jnp.isnan(state.info.loss)
    assert state.info.refusal == hfdist.Refusal.LOSS_NOT_FINITE
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(step))


@each_method
def test_a_label_of_weight_0_may_be_any(method):
    case = Case("softmax_cross_entropy", examples=EXAMPLES, weighted=True)
    batch = {**case.batch, "labels": case.batch["labels"].at[-1].set(-1)}
    step, _ = update(method, case.problem, case.params, batch)
    expected, _ = update(method, case.problem, case.params, case.batch)
    assert relative_error(step, expected) == 0


def test_labels_that_are_no_whole_numbers_are_refused():
    case = Case("softmax_cross_entropy")
    batch = {**case.batch, "labels": case.batch["labels"].astype(jnp.float32)}
    with pytest.raises(ValueError, match=r"batch\['labels'\] are float32"):
        update(METHODS["sgd"], case.problem, case.params, batch)


@pytest.mark.parametrize(("p", "q"), [(1, 1), (1, 3), (2, 3), (5, 6)])
def test_a_share_of_a_batch_is_the_same_rows_and_none_moves(p, q):
    batch = {"a": np.arange(48.0).reshape(24, 2), "b": {"c": np.arange(24)}}
    chosen = [i for i in range(24) if i % q < p]
    placed = jax.device_put(batch, NamedSharding(MESH, PartitionSpec("data")))
    some = jax.jit(partial(spread, share=Fraction(p, q)))
    for given in (batch, placed):
        found = some(given)
        np.testing.assert_array_equal(found["a"], batch["a"][chosen])
        np.testing.assert_array_equal(found["b"]["c"], batch["b"]["c"][chosen])
    assert found["a"].sharding == placed["a"].sharding
    program = some.lower(placed).compile().as_text()
    for collective in ("all-reduce", "all-gather", "all-to-all", "permute"):
        assert collective not in program
