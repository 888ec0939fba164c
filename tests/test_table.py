"""Regression from tables: what is read, refused, standardised, learnt and resumed."""

import numpy as np
import pytest

from hfdist import Newton, UsageError
from hfdist.models.mlp import MLP
from hfdist.runs.config import Config
from hfdist.runs.evaluate import evaluate
from hfdist.runs.train import train
from hfdist.tasks.table import Table
from toolkit.recorded import story

ROWS = 60


def numbers(n=ROWS, columns=4):
    return np.random.default_rng(3).normal(5, [1, 10, 100, 2][:columns], (n, columns))


def write(path, names, rows, delimiter=","):
    lines = [delimiter.join(map(str, row)) for row in [names, *rows]]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "data.csv", ["a", "b", "c", "y"], numbers().tolist())


def entries(task, split="train"):
    examples = task.examples(split)
    return examples.gather(np.arange(len(examples)))


def test_columns_are_standardised_by_the_training_rows(path):
    task = Table(file=path, target=("y",), test_fraction=0.25, split_seed=5)
    order = np.random.default_rng(5).permutation(ROWS)
    test, train = np.sort(order[:15]), np.sort(order[15:])
    table = numbers()
    mean, deviation = table[train].mean(0), table[train].std(0)
    for split, rows in (("train", train), ("test", test)):
        expected = (table[rows] - mean) / deviation
        found = entries(task, split)
        np.testing.assert_allclose(found["inputs"], expected[:, :3], rtol=1e-12)
        np.testing.assert_allclose(found["targets"], expected[:, 3:], rtol=1e-12)


def test_the_split_is_disjoint_and_of_the_seed(tmp_path):
    rows = [[i, i % 7] for i in range(ROWS)]
    path = write(tmp_path / "data.csv", ["number", "y"], rows)

    def split(seed):
        task = Table(file=path, target=("y",), split_seed=seed)
        shares = [task._rows(ROWS)[i].tolist() for i in (0, 1)]
        for name, share in zip(("train", "test"), shares, strict=True):
            x_B = entries(task, name)["inputs"][:, 0]
            assert np.all(np.diff(x_B) > 0)
            assert len(x_B) == len(share)
        return shares

    train, test = split(0)
    assert sorted(train + test) == list(range(ROWS))
    assert len(test) == 12
    assert split(0) == [train, test] != split(1)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_marks_and_quotes(tmp_path, delimiter):
    path = tmp_path / "data.csv"
    head = delimiter.join(["a", '"b, c; d"', " y "])
    rows = "\r\n".join(delimiter.join([str(i), str(i * i), "1e3"]) for i in range(9))
    path.write_text(f"\ufeff{head}\r\n{rows}\r\n\r\n", encoding="utf-8")
    task = Table(file=path, target=("b, c; d",))
    assert entries(task)["inputs"].shape == (7, 2)
    assert not entries(task)["inputs"][:, 1].any()  # a constant column is 0, not NaN


def test_what_is_constant_in_training_alone_is_0_in_both(tmp_path):
    rows = np.arange(3.0 * ROWS).reshape(ROWS, 3) ** 1.5
    order = np.random.default_rng(0).permutation(ROWS)
    rows[order[12:], 0] = 0.1
    path = write(tmp_path / "data.csv", ["a", "b", "y"], rows.tolist())
    for split in ("train", "test"):
        found = entries(Table(file=path, target=("y",)), split)["inputs"]
        assert not found[:, 0].any()
        assert found[:, 1].all()


def test_npz_with_matrices_and_columns(tmp_path):
    table = numbers()
    path = tmp_path / "data.npz"
    np.savez(path, inputs=table[:, :2], targets=table[:, 1:3], extra=table[:, 3])
    whole = entries(Table(file=path, target=("targets",)))
    assert whole["inputs"].shape == (48, 3)
    assert whole["targets"].shape == (48, 2)
    part = entries(Table(file=path, target=("targets[1]",), inputs=("inputs[0]",)))
    np.testing.assert_allclose(part["inputs"], whole["inputs"][:, :1], rtol=1e-9)
    np.testing.assert_allclose(part["targets"], whole["targets"][:, 1:], rtol=1e-9)


def lines(text):
    return lambda folder: (folder / "data.csv").write_text(text)


def saved(**arrays):
    return lambda folder: np.savez(folder / "data.npz", **arrays)


def many(row, n=20):
    return "a,b,y\n" + "1,2,3\n4,5,6\n" * n + row


FOUR = np.arange(4.0)
REFUSALS = [
    (r"data.csv cannot be read \(No such file", lambda folder: None, {}),
    (r"cannot be read \(.*utf-8", lambda f: (f / "data.csv").write_bytes(b"\xff"), {}),
    (r"cannot be read \(Is a directory", lambda f: (f / "data.csv").mkdir(), {}),
    (r"has no rows below the names", lines("a,b,y\n"), {}),
    (r"has no columns: give", lines(""), {}),
    (r"column 'b' is empty in row 41, and in 1 row\(s\)", lines(many("1,,3\n")), {}),
    (r"column 'b' is NaN in row 41.*fill or drop", lines(many("1,NaN,3\n")), {}),
    (r"column 'y' is NaN in row 41", lines(many("1,2,nan\n")), {}),
    (r"column 'a' has 'inf' in row 41, .*no finite", lines(many("inf,2,3\n")), {}),
    (r"column 'a' has 'x' in row 41, .*--data.inputs", lines(many("x,2,3\n")), {}),
    (r"column 'a' has '1,5' in row 1", lines("a;y\n1,5;2\n"), {}),
    (r"row 41 has 2 cells, and the row of names 3", lines(many("1,2\n")), {}),
    (r"more than one column 'a'", lines("a,b,a,y\n1,2,3,4\n"), {}),
    (
        r"no column 'yy' \(perhaps 'y'\): it has a, b, y",
        lines(many("")),
        {"target": ("yy",)},
    ),
    (r"no column 'q': it has a, b, y", lines(many("")), {"inputs": ("q",)}),
    (r"'y' is both an input and a target", lines(many("")), {"inputs": ("a", "y")}),
    (r"no column beside the targets", lines(many("")), {"target": ("a", "b", "y")}),
    (r"too few rows: 2, of which .* 0.2 keeps 0", lines("a,y\n1,2\n3,4\n"), {}),
    (r"too few rows: 2, .* keeps 1", lines("a,y\n1,2\n3,4\n"), {"test_fraction": 0.5}),
    (r"target 'y' is 2 in every training row", lines("a,y\n" + "1,2\n" * 9), {}),
    (r"test_fraction is 1: use .* less than 1", lines(many("")), {"test_fraction": 1}),
    (r"target is empty", lines(many("")), {"target": ()}),
]
ARRAYS = [
    (r"array 'y' has 3 rows, and 'a' 4", {"a": FOUR, "y": FOUR[:3]}),
    (r"array 'a' is <U1 of shape \(4,\): use real", {"a": list("abcd"), "y": FOUR}),
    (r"array 'a' is float64 of shape \(\)", {"a": 1.0, "y": FOUR}),
    (r"column 'a' is NaN in row 2", {"a": [1, np.nan, 2, 3], "y": FOUR}),
    (r"cannot be read \(Object arrays", {"a": np.array([{}] * 4), "y": FOUR}),
    (r"has no column 'y'", {"a": FOUR}),
]


@pytest.mark.parametrize(("message", "make", "settings"), REFUSALS)
def test_a_table_that_does_not_fit_is_refused(tmp_path, message, make, settings):
    make(tmp_path)
    with pytest.raises(UsageError, match=message):
        Table(file=tmp_path / "data.csv", **{"target": ("y",)} | settings).examples(
            "train"
        )


@pytest.mark.parametrize(("message", "arrays"), ARRAYS)
def test_arrays_that_do_not_fit_are_refused(tmp_path, message, arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(UsageError, match=message):
        Table(file=tmp_path / "data.npz", target=("y",)).examples("train")


def test_an_npz_that_is_none_is_refused(tmp_path):
    for content in (b"", b"PK", b"not an archive"):
        (tmp_path / "data.npz").write_bytes(content)
        with pytest.raises(UsageError, match=r"data.npz cannot be read"):
            Table(file=tmp_path / "data.npz", target=("y",)).examples("train")


def test_text_may_stand_in_columns_that_are_not_used(tmp_path):
    (tmp_path / "data.csv").write_text("name,a,y\n" + "x,1,2\ny,2,3\n" * 9)
    task = Table(file=tmp_path / "data.csv", target=("y",), inputs=("a",))
    assert entries(task)["inputs"].shape == (14, 1)


def test_a_file_that_was_written_anew_is_read_anew(path):
    task = Table(file=path, target=("y",))
    before = entries(task)["inputs"]
    write(path, ["a", "b", "c", "y"], numbers(30).tolist())
    assert len(entries(task)["inputs"]) == 24 != len(before)


@pytest.mark.parametrize(
    ("name", "targets", "shape"), [("diabetes", 1, (442, 10)), ("linnerud", 3, (20, 3))]
)
def test_scikit_learns_tables_are_in_their_own_units(name, targets, shape):
    datasets = pytest.importorskip("sklearn.datasets")
    data = getattr(datasets, f"load_{name}")()
    names = {"diabetes": ("target",)}.get(name) or tuple(data.target_names)
    task = Table(file=f"sklearn:{name}", target=names)
    sides = task._sides()
    assert sides.inputs.shape == shape
    np.testing.assert_array_equal(sides.targets, data.target.reshape(-1, targets))
    assert sides.inputs.mean() > 1  # not scikit-learn's scaled columns


def test_scikit_learn_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(UsageError, match=r"pip install 'hfdist\[table\]'"):
        Table(file="sklearn:diabetes", target=("target",)).examples("train")
    with pytest.raises(UsageError, match=r"perhaps 'diabetes'"):
        Table(file="sklearn:diabets", target=("target",)).examples("train")


def config_of(path, **settings):
    return Config(
        **{
            "data": Table(file=path, target=("y",)),
            "model": MLP(hidden=()),
            "method": Newton(damping=0.0, learning_rate=1.0, curvature="gauss_newton"),
            "dtype": "float64",
            "batch_size": 48,
            "epochs": 1,
            "compilation_cache": None,
        }
        | settings
    )


def test_one_newton_step_of_a_linear_model_is_least_squares(path, tmp_path):
    config = config_of(path, run_dir=tmp_path / "run")
    result = train(config)
    x, y = (entries(config.data)[name] for name in ("inputs", "targets"))
    ones = np.ones((len(x), 1))
    solution = np.linalg.lstsq(np.hstack([x, ones]), y, rcond=None)[0]
    test = entries(config.data, "test")
    z = np.hstack([test["inputs"], np.ones((12, 1))]) @ solution
    assert result.test.loss == pytest.approx(np.mean((z - test["targets"]) ** 2), 1e-10)
    own_units = numbers()[config.data._rows(ROWS)[1], 3]
    train_rows = numbers()[config.data._rows(ROWS)[0], 3]
    predicted = z[:, 0] * train_rows.std() + train_rows.mean()
    residual = np.sum((predicted - own_units) ** 2)
    expected = 1 - residual / np.sum((own_units - own_units.mean()) ** 2)
    assert result.test.figures["r_squared"] == pytest.approx(expected, 1e-9)
    assert evaluate(tmp_path / "run")[1] == result.test


def test_r_squared_of_targets_that_are_all_equal_is_nan(path):
    task = Table(file=path, target=("y",))
    assert np.isnan(task.report({"error": 1.0, "variance": 0.0})["r_squared"])


@pytest.mark.slow
def test_a_run_continues_bit_for_bit(path, tmp_path):
    def run(name, **settings):
        settings = {"batch_size": 16, "epochs": 4, "model": MLP(hidden=(5,))} | settings
        method = Newton(damping=1.0, curvature="gauss_newton")
        train(config_of(path, method=method, run_dir=tmp_path / name, **settings))

    run("whole")
    run("parts", epochs=2)
    run("parts")
    assert story(tmp_path / "parts") == story(tmp_path / "whole")
