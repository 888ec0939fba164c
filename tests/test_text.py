"""The text task and the transformer, against slices of strings and dense algebra."""

import gzip
import json
import math
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hfdist
from cases import ONE_DEVICE, loop, relative_error
from hfdist import CG, HessianFree, UsageError, losses, parallel
from hfdist.models.mlp import MLP
from hfdist.models.model import functional
from hfdist.models.transformer import Transformer
from hfdist.quadratics import quadratic
from hfdist.runs.config import Config
from hfdist.runs.evaluate import evaluate
from hfdist.runs.train import train
from hfdist.tasks import text
from hfdist.tasks.next_token import Windows
from hfdist.tasks.pipeline import GlobalBatches
from hfdist.tasks.text import Text
from quick import mostly_slow

LAYERS, HEADS, WIDTH, VOCABULARY, CONTEXT = 2, 2, 8, 7, 5
TINY = Transformer(layers=LAYERS, heads=HEADS, width=WIDTH)
MESH = hfdist.make_mesh(4)


@pytest.fixture
def file(tmp_path):
    """A text of two- and four-byte characters, too, with line ends of two kinds."""
    rng = np.random.default_rng(0)
    path = tmp_path / "text.txt"
    path.write_bytes("".join(rng.choice(list("abé\n\r𝄞 "), 700)).encode())
    return path


def decoded(task, windows):
    """The windows as strings."""
    _, vocabulary = task._tokens()
    return ["".join(vocabulary[token] for token in row) for row in windows]


# The examples.


def test_windows_are_slices_of_the_text(file):
    task, whole = Text(file=file, context=CONTEXT), file.read_bytes().decode()
    cut = len(whole) * 9 // 10
    for split, part in (("train", whole[:cut]), ("test", whole[cut:])):
        examples = task.examples(split)
        starts = range(0, len(part) - CONTEXT, CONTEXT)
        assert len(examples) == len(starts)
        windows = examples.gather(np.arange(len(starts)))["tokens"]
        assert windows.dtype == np.uint8
        assert decoded(task, windows) == [part[i : i + CONTEXT + 1] for i in starts]


def test_places_of_any_shape(file):
    examples = Text(file=file, context=CONTEXT).examples("train")
    rows = examples.gather(np.arange(6))["tokens"]
    square = examples.gather(np.arange(6).reshape(2, 3))["tokens"]
    np.testing.assert_array_equal(square.reshape(6, -1), rows)


def test_the_labels_are_the_inputs_one_further(file):
    task = Text(file=file, context=CONTEXT)
    examples = task.examples("train")
    batch = examples.gather(np.arange(3)) | {"weights": np.ones(3)}
    prepared = task.prepare(jax.tree.map(jnp.asarray, batch), "float32")
    assert set(prepared) == {"inputs", "labels", "weights"}
    np.testing.assert_array_equal(prepared["inputs"], batch["tokens"][:, :-1])
    np.testing.assert_array_equal(prepared["labels"], batch["tokens"][:, 1:])


def test_each_character_is_a_target_once_an_epoch(file):
    examples = Text(file=file, context=CONTEXT).examples("train")
    # Each character's own place in the text stands for it.
    examples = Windows(np.arange(len(examples.tokens)), CONTEXT)
    batches = GlobalBatches(examples, 8, seed=3)
    chunk = batches.chunk(0, batches.per_epoch)
    targets = chunk["tokens"][chunk["weights"] == 1][:, 1:].ravel()
    last = (len(examples.tokens) - 1) // CONTEXT * CONTEXT
    np.testing.assert_array_equal(np.sort(targets), np.arange(1, last + 1))


def test_the_shipped_text_is_whole():
    task = Text()
    tokens, vocabulary = task._tokens()
    assert (len(tokens), len(vocabulary)) == (1_115_394, 65)
    (start,) = decoded(task, task.examples("train").gather(np.zeros(1, int))["tokens"])
    assert start.startswith("First Citizen:\nBefore we proceed any further")
    assert len(task.examples("test").tokens) == 111_540


def test_a_compressed_file_is_the_same_text(file, tmp_path):
    packed = tmp_path / "text.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    for one, other in zip(
        Text(file=file)._tokens(), Text(file=packed)._tokens(), strict=True
    ):
        assert len(one) == len(other)
        assert all(a == b for a, b in zip(one, other, strict=True))


def test_many_characters_take_two_bytes_each(tmp_path):
    path = tmp_path / "text"
    path.write_text("".join(map(chr, range(0x4E00, 0x4E00 + 300))))
    task = Text(file=path, context=CONTEXT)
    windows = task.examples("train").gather(np.arange(2))["tokens"]
    assert windows.dtype == np.uint16
    assert decoded(task, windows)[0] == "".join(map(chr, range(0x4E00, 0x4E06)))


# What is refused.


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"cannot be read \(.*No such file.*give --data.file a text"),
        (b"", "is empty: give --data.file"),
        (b"caf\xe9 " * 500, r"no UTF-8 text: .* at byte 3; give --data.file one"),
        (b"abcd" * 25, r"has 100 characters.*at least 101, or a smaller --data.co"),
        (b"no gzip", r"cannot be read \(Not a gzipped file"),
        (
            gzip.compress(b"abc" * 99, mtime=0)[:-9],
            r"cannot be read \(Compressed file ended",
        ),
    ],
)
def test_files_that_are_no_sound_text(tmp_path, content, words):
    path = tmp_path / ("text.gz" if "cannot" in words else "text")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        Text(file=path, context=CONTEXT).examples("train")


def test_the_fewest_characters_that_are_said_to_do_are_enough(tmp_path):
    path = tmp_path / "text"
    path.write_text("a" * 101)
    for split in ("train", "test"):
        assert len(Text(file=path, context=CONTEXT).examples(split)) >= 2


def test_a_shipped_text_that_was_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "TINYSHAKESPEARE", tmp_path / "input.txt.gz")
    with pytest.raises(UsageError, match=r"cannot be read .*: reinstall hfdist"):
        Text().examples("train")
    (tmp_path / "input.txt.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(UsageError, match=r"wrong SHA-256.*reinstall hfdist"):
        Text().examples("train")


def test_a_model_that_reads_no_characters(file):
    task = Text(file=file, context=CONTEXT)
    with pytest.raises(UsageError, match=r"MLP makes outputs \(2, 7\) of .*such as"):
        task.problem(MLP(), 0)


def test_a_model_that_fails_on_characters(file, monkeypatch):
    def build(self, inputs, outputs, seed):
        return TINY.build(inputs - 1, outputs, seed)  # one position too few

    monkeypatch.setattr(MLP, "build", build)
    with pytest.raises(UsageError, match=r"MLP cannot read characters .*such as"):
        Text(file=file, context=CONTEXT).problem(MLP(), 0)


def test_a_transformer_of_no_tokens():
    module = TINY.build(CONTEXT, VOCABULARY, 0)
    for inputs in (
        jnp.ones((2, CONTEXT)),
        jnp.ones(CONTEXT, int),
        jnp.ones((2, CONTEXT + 1), int),
    ):
        with pytest.raises(UsageError, match=r"whole numbers .* with T up to 5"):
            module(inputs)


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(UsageError, match="3 heads cannot share evenly: use a mult"):
        Transformer(width=8, heads=3)


# The transformer and its products.


@cache
def tiny(tied):
    """A problem, params of size 0.3, so that attention matters, and a batch."""
    model = Transformer(layers=LAYERS, heads=HEADS, width=WIDTH, tied_embeddings=tied)
    predict, params = functional(model.build(CONTEXT, VOCABULARY, 0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(leaf + rng.normal(scale=0.3, size=leaf.shape)), params
    )
    tokens = rng.integers(0, VOCABULARY, (4, CONTEXT + 1))
    batch = {
        "inputs": jnp.asarray(tokens[:, :-1]),
        "labels": jnp.asarray(tokens[:, 1:]),
        "weights": jnp.asarray([0.5, 2.0, 1.0, 0.0]),
    }
    return hfdist.Problem(predict, losses.next_token_cross_entropy), params, batch


def normed(x_TD, scale_D):
    centred = x_TD - x_TD.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale_D


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention_of(x_TD, block):
    """Head by head, and position by position."""
    q_TD, k_TD, v_TD = np.split(x_TD @ block["query_key_value"]["kernel"], 3, axis=1)
    size, mixed_TD = WIDTH // HEADS, np.zeros_like(q_TD)
    for head in range(HEADS):
        own = slice(head * size, (head + 1) * size)
        for t in range(len(x_TD)):
            scores = k_TD[: t + 1, own] @ q_TD[t, own] / math.sqrt(size)
            mixed_TD[t, own] = softmax(scores) @ v_TD[: t + 1, own]
    return mixed_TD @ block["attention_out"]["kernel"]


def logits_of(params, tokens_T):
    """The network for one sequence, in numpy."""
    params = jax.tree.map(np.asarray, params)
    x_TD = params["tokens_VD"][tokens_T] + params["positions_TD"]
    erf = np.vectorize(math.erf)
    for index in range(LAYERS):
        block = params["blocks"][index]
        x_TD = x_TD + attention_of(
            normed(x_TD, block["attention_norm"]["scale"]), block
        )
        h = normed(x_TD, block["hidden_norm"]["scale"]) @ block["hidden"]["kernel"]
        gelu = h * (1 + erf(h / math.sqrt(2))) / 2
        x_TD = x_TD + gelu @ block["hidden_out"]["kernel"]
    x_TD = normed(x_TD, params["norm"]["scale"])
    tied = params["tokens_VD"].T
    return x_TD @ (params["head"]["kernel"] if "head" in params else tied)


each_tie = pytest.mark.parametrize("tied", [True, False])


@each_tie
def test_the_transformer_is_that_in_numpy(tied):
    problem, params, batch = tiny(tied)
    expected = [logits_of(params, tokens) for tokens in np.asarray(batch["inputs"])]
    logits_BTV = jax.jit(problem.predict)(params, batch)
    assert relative_error(logits_BTV, np.stack(expected)) < 1e-12


def dense(problem, params, batch, v):
    """f, ∇f and G v, token by token in numpy from the Jacobian J (B, T, V, N)."""
    flat, unravel = ravel_pytree(params)
    jacobian = jax.jit(jax.jacobian(lambda w: problem.predict(unravel(w), batch)))
    j_BTVN = np.asarray(jacobian(flat))
    p_BTV = softmax(np.asarray(jax.jit(problem.predict)(params, batch)))
    weights_B = np.asarray(batch["weights"]) / np.sum(batch["weights"])
    value, gradient, product = 0.0, np.zeros(flat.size), np.zeros(flat.size)
    for b, weight in enumerate(weights_B / CONTEXT):
        for t, label in enumerate(np.asarray(batch["labels"])[b]):
            p_V, j_VN = p_BTV[b, t], j_BTVN[b, t]
            value -= weight * np.log(p_V[label])
            gradient += weight * j_VN.T @ (p_V - np.eye(VOCABULARY)[label])
            h_VV = np.diag(p_V) - np.outer(p_V, p_V)
            product += weight * j_VN.T @ (h_VV @ (j_VN @ v))
    return value, gradient, product


def model_at(params, tied, v, kind):
    """f, ∇f and C v of hfdist."""
    problem, like, batch = tiny(tied)
    _, unravel = ravel_pytree(like)
    model = quadratic(problem, unravel(params), batch, kind, ONE_DEVICE)
    return model.value, model.gradient, model.product(unravel(v))


@pytest.mark.parametrize("tied", mostly_slow([True, False], [True]))
def test_gauss_newton_products_are_those_of_dense_algebra(tied):
    problem, params, batch = tiny(tied)
    flat, _ = ravel_pytree(params)
    v = np.random.default_rng(5).normal(size=flat.size)
    own = jax.jit(partial(model_at, tied=tied, kind="gauss_newton"))(flat, v=v)
    for result, expected in zip(own, dense(problem, params, batch, v), strict=True):
        assert relative_error(result, expected) < 1e-11


@pytest.mark.slow
@each_tie
def test_hessian_products_are_differences_of_gradients(tied):
    flat, _ = ravel_pytree(tiny(tied)[1])
    v = np.random.default_rng(5).normal(size=flat.size)
    model = jax.jit(partial(model_at, tied=tied, kind="hessian"))
    step = 1e-5
    _, ahead, product = model(flat + step * v, v=v)
    _, behind, other = model(flat - step * v, v=v)
    difference = (ravel_pytree(ahead)[0] - ravel_pytree(behind)[0]) / (2 * step)
    mean = (ravel_pytree(product)[0] + ravel_pytree(other)[0]) / 2
    assert relative_error(mean, difference) < 1e-6


def test_tied_embeddings_are_one_leaf():
    sizes = {}
    for tied in (True, False):
        _, params, _ = tiny(tied)
        assert ("head" in params) != tied
        sizes[tied] = ravel_pytree(params)[0].size
    assert sizes[False] - sizes[True] == VOCABULARY * WIDTH


def test_the_initial_params_are_gpt_2s():
    model = Transformer(width=64, layers=2)
    _, params = functional(model.build(64, 200, 0))
    block = params["blocks"][1]
    for leaf, deviation in (
        (params["tokens_VD"], 0.02),
        (params["positions_TD"], 0.02),
        (block["query_key_value"]["kernel"], 0.02),
        (block["hidden"]["kernel"], 0.02),
        (block["attention_out"]["kernel"], 0.01),
        (block["hidden_out"]["kernel"], 0.01),
    ):
        assert np.std(leaf) == pytest.approx(deviation, rel=0.05)
    assert np.all(block["hidden_norm"]["scale"] == 1)


def test_no_logit_depends_on_a_later_character():
    problem, params, batch = tiny(True)
    predict = jax.jit(problem.predict)
    whole = predict(params, batch)
    for t in range(1, CONTEXT):
        others = batch["inputs"].at[:, t:].set(batch["inputs"][:, t:] + 1) % VOCABULARY
        changed = predict(params, batch | {"inputs": others})
        np.testing.assert_array_equal(changed[:, :t], whole[:, :t])
        assert np.all(np.any(changed[:, t] != whole[:, t], -1))


@pytest.mark.slow
def test_four_devices_take_the_steps_of_one(monkeypatch):
    monkeypatch.setattr(parallel, "CHECK_VMA", True)
    problem, params, batch = tiny(True)
    method = HessianFree(damping=1.0, cg=CG(max_steps=3, rtol=0.0))
    one, one_infos = loop(method.build(problem), params, batch)
    many, infos = loop(method.build(problem, MESH), params, batch)
    assert relative_error(many, one) < 1e-10
    for a, b in zip(infos, one_infos, strict=True):
        assert a.loss == pytest.approx(float(b.loss), rel=1e-10)


# The loss.


def test_the_loss_of_a_window_is_the_mean_over_its_characters():
    rng = np.random.default_rng(0)
    z_BTV, labels_BT = rng.normal(size=(2, 3, 4)), rng.integers(0, 4, (2, 3))
    expected = [
        -np.mean([np.log(softmax(z)[label]) for z, label in zip(*pair, strict=True)])
        for pair in zip(z_BTV, labels_BT, strict=True)
    ]
    batch = {"labels": jnp.asarray(labels_BT)}
    loss_B = losses.next_token_cross_entropy(jnp.asarray(z_BTV), batch)
    np.testing.assert_allclose(loss_B, expected, rtol=1e-12)


def test_a_label_outside_the_vocabulary_counts_where_its_weight_does():
    labels = jnp.asarray([[0, 1], [4, 0], [-1, 0], [0, 0]])
    batch: dict[str, Any] = {"labels": labels}
    z_BTV = jnp.zeros((4, 2, 4))
    loss_B = losses.next_token_cross_entropy(z_BTV, batch)
    assert np.isnan(loss_B).tolist() == [False, True, True, False]
    batch["weights"] = jnp.asarray([1.0, 0.0, 2.0, 1.0])
    loss_B = losses.next_token_cross_entropy(z_BTV, batch)
    assert np.isnan(loss_B).tolist() == [False, False, True, False]


def test_labels_of_another_shape_than_the_logits():
    with pytest.raises(UsageError, match="differ in shape"):
        losses.next_token_cross_entropy(
            jnp.zeros((2, 3, 4)), {"labels": jnp.zeros(2, int)}
        )


# Runs.


def story(run_dir):
    """All that must be the same: every training step, and every checksum."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    lines = [
        {name: value for name, value in line.items() if "seconds" not in name}
        for line in lines
        if line["split"] == "train"
    ]
    newest = max((run_dir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    return lines, json.loads((newest / "record" / "metadata").read_text())["checksums"]


def test_a_run_that_was_continued_equals_one_that_was_not(file, tmp_path):
    def run(folder, steps):
        return train(
            Config(
                method=HessianFree(damping=4.0, cg=CG(max_steps=2)),
                model=Transformer(layers=1, heads=2, width=WIDTH),
                data=Text(file=file, context=CONTEXT),
                batch_size=16,
                max_steps=steps,
                steps_per_dispatch=3,
                compilation_cache=None,
                run_dir=tmp_path / folder,
            )
        )

    whole = run("whole", 6)
    run("parts", 3)
    parts = run("parts", 6)
    assert parts.steps == 6
    assert story(tmp_path / "parts") == story(tmp_path / "whole")
    assert parts.test == whole.test
    assert whole.test.figures["bits_per_character"] == whole.test.loss / math.log(2)
    step, again = evaluate(tmp_path / "whole")
    assert (step, again.figures) == (6, pytest.approx(whole.test.figures))
