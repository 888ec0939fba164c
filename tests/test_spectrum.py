"""The eigenvalue tool: dense float64 truth, known spectra, and the command."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from optax import tree

import hfdist
import spectrum
from hfdist import memory
from hfdist.errors import UsageError
from hfdist.models.mlp import MLP
from hfdist.runs.config import Config
from hfdist.runs.train import train
from hfdist.spectrum import eigenvalues, live
from hfdist.spectrum.live import Live, live_rows
from hfdist.spectrum.quadrature import quadrature
from hfdist.tasks.examples import Arrays
from hfdist.tasks.idx import IDX
from idx_files import make_folder

ROOT = Path(__file__).parent.parent
FEATURES, CLASSES, EXAMPLES, DARK = 5, 3, 34, 2


class Few(IDX):
    """Five pixels an image."""

    def pixels(self):
        return FEATURES


CONFIG = Config(
    method=hfdist.SGD(learning_rate=0.1),
    model=MLP(hidden=(4,), activation="tanh"),
    data=Few(classes=CLASSES),
)
N = 39
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (EXAMPLES, FEATURES), dtype=np.uint8)
PIXELS[:, DARK] = 0  # no derivative in the 4 weights from this pixel
LABELS = RNG.integers(0, CLASSES, EXAMPLES)
SMALL = Arrays({"inputs": PIXELS, "labels": LABELS})


def truth(curvature, predict, params):
    """The matrix (N, N) of the mean cross-entropy, all examples at once."""
    w_N, unravel = ravel_pytree(params)
    inputs = jnp.asarray(PIXELS) / 255.0

    def outputs(w_N):
        return predict(unravel(w_N), {"inputs": inputs})

    def mean_loss(w_N):
        log_p_BC = jax.nn.log_softmax(outputs(w_N))
        return -log_p_BC[np.arange(EXAMPLES), LABELS].mean()

    if curvature == "hessian":
        return np.asarray(jax.jit(jax.hessian(mean_loss))(w_N))
    j_BCN = np.asarray(jax.jit(jax.jacobian(outputs))(w_N))
    p_BC = np.asarray(jax.nn.softmax(outputs(w_N)))
    h_BCC = np.eye(CLASSES) * p_BC[:, None] - p_BC[:, :, None] * p_BC[:, None]
    return np.einsum("bcn,bcd,bdm->nm", j_BCN, h_BCC, j_BCN) / EXAMPLES


def matrix_of(problem, params, examples, curvature, mesh):
    """As the tool makes it."""
    problem = spectrum.on_stored(problem, IDX())
    batches = spectrum.placed_batches(examples, mesh)
    params = tree.cast(params, "float64")
    return hfdist.curvature(problem, params, batches, curvature, mesh, stacked=True)


@pytest.fixture(scope="module")
def net():
    problem, params = replace(CONFIG, dtype="float64").build_problem()
    random = np.random.default_rng(1)
    return problem, jax.tree.map(lambda a: random.normal(size=a.shape), params)


@pytest.mark.parametrize(
    ("curvature", "devices"), [("gauss_newton", 1), ("hessian", 4)]
)
def test_exact_eigenvalues_match_numpy(curvature, devices, net, monkeypatch):
    # Batches of 6, or of 8 that four devices share, the last with 2 examples and 6 of
    # weight 0, all that three of the devices have.
    monkeypatch.setattr(spectrum, "BATCH", 6)
    monkeypatch.setattr(live, "BLOCK", 16)
    problem, params = net
    mesh = hfdist.make_mesh(devices)
    matrix = matrix_of(problem, params, SMALL, curvature, mesh)
    assert len(live_rows(matrix).live_M) == N - 4
    found = hfdist.spectrum.spectrum(matrix)
    expected_N = np.linalg.eigvalsh(truth(curvature, problem.predict, params))
    np.testing.assert_allclose(np.sort(found.values_V), expected_N, rtol=0, atol=1e-12)
    assert found.method == "exact"
    assert found.zeros == np.sum(abs(expected_N) < 1e-12) >= 4
    assert found.negative_share == np.sum(expected_N < -1e-12) / N
    assert (found.negative_share > 0) == (curvature == "hessian")
    by_modulus = expected_N[np.argsort(-abs(expected_N))]
    np.testing.assert_allclose(found.top_K, by_modulus[:10], rtol=1e-8)
    with pytest.raises(UsageError, match="not finite"):
        live_rows(replace(matrix, params=tree.full_like(params, np.nan)))


def test_a_matrix_in_float32_has_its_own_roundoff(net):
    problem, params = net
    batch = {"inputs": PIXELS.astype("f") / 255, "labels": LABELS.astype("i4")}
    narrow = tree.cast(params, "float32")
    found = hfdist.spectrum.spectrum(hfdist.curvature(problem, narrow, batch))
    expected_N = np.linalg.eigvalsh(truth("gauss_newton", problem.predict, params))
    np.testing.assert_allclose(found.top_K, expected_N[:-11:-1], rtol=0, atol=1e-5)
    assert found.negative_share == 0
    assert found.zeros >= np.sum(abs(expected_N) < 1e-12)


def known(values_M, zero_rows=10):
    """A matrix of these eigenvalues, and zero rows beside them."""
    order = len(values_M)
    q_MM = np.linalg.qr(np.random.default_rng(2).normal(size=(order, order)))[0]
    a_MM = (q_MM * values_M) @ q_MM.T
    return Live(order + zero_rows, np.arange(order), lambda v: v @ a_MM, lambda: a_MM)


# Like a network's: ten large ones, a long tail, and 40 that are negative.
HEAVY = np.concatenate([np.geomspace(1, 10, 10), np.geomspace(1e-6, 0.3, 230)])
INDEFINITE = np.concatenate([HEAVY, -np.geomspace(5e-3, 0.5, 40)])


@pytest.mark.parametrize("values_M", [HEAVY, INDEFINITE], ids=["spd", "indefinite"])
def test_lanczos_finds_a_known_spectrum(values_M):
    found = eigenvalues.from_products(known(values_M), top=10)
    by_modulus = values_M[np.argsort(-abs(values_M))]
    np.testing.assert_allclose(found.top_K, by_modulus[:10], rtol=1e-8)
    assert found.residuals_K is not None
    assert found.residuals_K.max() < 1e-6
    assert found.counts_V.sum() == pytest.approx(len(values_M) + 10)
    assert found.moment(1) == pytest.approx(values_M.sum(), rel=0.01)
    assert found.moment(2) == pytest.approx(np.sum(values_M**2), rel=0.01)
    assert abs(found.moment(1) - values_M.sum()) < 3 * found.trace_error
    assert found.largest == pytest.approx(10)
    assert found.smallest == pytest.approx(values_M.min(), abs=1e-4)
    negatives = np.sum(values_M < -found.zero_below)
    assert found.negative_share * (len(values_M) + 10) == pytest.approx(negatives, 0.05)
    assert found.zeros == 10


def test_lanczos_without_zero_rows_finds_no_zero():
    values_M = HEAVY[::2] + 0.5
    found = eigenvalues.from_products(known(values_M, zero_rows=0), top=10)
    assert found.zeros == 0
    assert found.smallest == pytest.approx(0.5, abs=1e-4)
    assert found.smallest_residual is not None
    assert 0 < found.smallest_residual < 1e-3
    assert found.counts_V.sum() == pytest.approx(len(values_M))


def test_the_trace_is_unbiased_and_its_standard_error_right(monkeypatch):
    monkeypatch.setattr(eigenvalues, "PAIRS", 20)
    monkeypatch.setattr(eigenvalues, "STEPS", 2)  # exact for a trace
    matrix = known(INDEFINITE)
    runs = [eigenvalues.from_products(matrix, 10, seed) for seed in range(10)]
    deviations = [(run.moment(1) - INDEFINITE.sum()) / run.trace_error for run in runs]
    # Of 10 values of Student's t with 15 degrees of freedom.
    assert abs(np.mean(deviations)) < 3 * np.sqrt(15 / 13 / 10)
    assert 0.5 < np.std(deviations) < 2


def test_quadrature_is_exact_for_polynomials_of_degree_below_twice_the_steps():
    matrix = known(INDEFINITE)
    a_MM = matrix.dense()
    rule = quadrature(matrix.product, np.zeros((280, 0)), 2, steps=4, seed=3)
    probes_PM = np.random.default_rng(3).normal(size=(2, 280))
    for p, u_M in enumerate(probes_PM / np.linalg.norm(probes_PM, axis=1)[:, None]):
        for degree in range(8):
            expected = u_M @ np.linalg.matrix_power(a_MM, degree) @ u_M
            actual = rule.weights_Pm[p] @ rule.nodes_Pm[p] ** degree
            assert actual == pytest.approx(expected, rel=1e-10)


def test_more_steps_than_eigenvalues_do_no_harm():
    values_M = np.repeat([-1.0, 2.0, 5.0], 20)
    rule = quadrature(known(values_M).product, np.zeros((60, 0)), 3, 30, seed=0)
    assert np.all(np.isfinite(rule.nodes_Pm))
    assert np.sum(rule.weights_Pm, axis=1) == pytest.approx(1)
    heavy = rule.nodes_Pm[rule.weights_Pm > 1e-8]
    assert np.min(abs(heavy[:, None] - [-1, 2, 5]), axis=1) == pytest.approx(0)


def test_the_density_integrates_to_one_and_peaks_at_the_eigenvalues():
    found = eigenvalues.exact(known(np.array([2.0, -3.0])), top=2)
    x_G = np.linspace(-10, 10, 4001)
    density_G = found.density(x_G, scale=0.1)
    assert np.trapezoid(density_G, x_G) == pytest.approx(1, rel=1e-9)
    assert x_G[np.argmax(density_G)] == pytest.approx(0)  # 10 zero rows
    for side_G, expected in ((x_G > 1, np.arcsinh(20)), (x_G < -1, -np.arcsinh(30))):
        assert np.trapezoid(density_G[side_G], x_G[side_G]) == pytest.approx(1 / 12)
        peak = x_G[side_G][np.argmax(density_G[side_G])]
        assert peak == pytest.approx(expected, abs=0.005)


def test_condition():
    found = eigenvalues.exact(known(np.array([8.0, -2.0])), top=1)
    assert found.condition(4.0) == pytest.approx(12 / 2)
    assert found.condition(2.0) == np.inf
    assert np.isnan(found.condition(1.0))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run with checkpoints at steps 4 and 8."""
    folder = tmp_path_factory.mktemp("spectrum")
    make_folder(folder / "data")
    config = replace(
        CONFIG,
        data=IDX(dir=folder / "data", classes=CLASSES),
        method=hfdist.HessianFree(damping=4.0),
        batch_size=8,
        max_steps=8,
        steps_per_dispatch=4,
        checkpoint_steps=4,
        run_dir=folder / "run",
        compilation_cache=None,
    )
    train(config)
    return folder / "run"


def command(monkeypatch, capsys, *arguments):
    """(exit code, stdout, stderr) of tools/spectrum.py."""
    monkeypatch.setattr(sys, "argv", ["spectrum.py", *map(str, arguments)])
    code = spectrum.main()
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.slow
def test_the_devices_are_made_before_jax_starts(run_dir, tmp_path):
    """A process of its own: in this one JAX runs."""
    tool = [sys.executable, ROOT / "tools/spectrum.py", run_dir, "--json"]
    options = ["--devices", "4", "--step", "8", "--out", tmp_path / "drawn"]
    done = subprocess.run([*tool, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["devices"] == 4
    assert [row["step"] for row in said["spectra"]] == [8, 8]


def test_the_command(run_dir, tmp_path, monkeypatch, capsys):
    options = ["--json", "--top", "3", "--out", tmp_path / "drawn"]
    code, out, err = command(monkeypatch, capsys, run_dir, *options)
    assert code == 0, err
    said = json.loads(out)
    assert said["devices"] == 1
    assert said["parameters"] == 83
    assert said["examples"] == 100
    assert said["damping"] == 4
    assert [(row["step"], row["curvature"]) for row in said["spectra"]] == [
        (4, "hessian"), (4, "gauss_newton"), (8, "hessian"), (8, "gauss_newton")
    ]  # fmt: skip
    for row in said["spectra"]:
        assert len(row["top"]) == 3
        expected = (row["largest"] + 4) / (row["smallest"] + 4)
        assert row["condition"] == pytest.approx(expected)
    assert said["spectra"][0]["top"] != said["spectra"][2]["top"]
    assert {path.name for path in tmp_path.iterdir()} == {"drawn.png", "drawn.svg"}
    # The same as a table.
    monkeypatch.setattr(spectrum, "report", lambda _: said | {"run_dir": "a[/b]:x:"})
    code, out, _ = command(monkeypatch, capsys, run_dir)
    assert code == 0
    assert "a[/b]:x:: 83 parameters, 100 examples" in out
    for row in said["spectra"]:
        assert f"{row['largest']:.4g}" in out
        assert f"step {row['step']}, {row['curvature']}: {row['top'][0]:.5g}" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "5"], "no checkpoint of step 5; its steps are [4, 8]"),
        (["--examples", "0"], "--examples is 0: use 1 or more"),
        (["--top", "0"], "--top is 0: use 1 or more"),
        (["--devices", "99"], "--devices 99"),
        (["--config", "nowhere.py"], "config nowhere.py does not exist"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    arguments, message, run_dir, monkeypatch, capsys
):
    code, out, err = command(monkeypatch, capsys, run_dir, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not out


def test_a_folder_that_is_no_run_and_a_matrix_too_large_are_mistakes(
    run_dir, tmp_path, monkeypatch, capsys
):
    code, _, err = command(monkeypatch, capsys, tmp_path)
    assert code == 2
    assert "is not a run directory" in err
    monkeypatch.setattr(memory, "device_memory", lambda: 1000)
    for options, remedy in ((["--exact"], "do not ask for all"), ([], "smaller net")):
        code, _, err = command(monkeypatch, capsys, run_dir, *options)
        assert code == 2
        assert remedy in err
        assert err.count("\n") == 1


def rewritten(old, new):
    """A function that changes the text of a run's config.json."""

    def rewrite(run):
        path = run / "config.json"
        path.write_text(path.read_text().replace(old, new))

    return rewrite


DAMAGES = [
    (lambda run: (run / "config.json").unlink(), "is not a run directory"),
    (rewritten("{", "["), "is not a run directory"),
    (rewritten('"config"', '"x"'), "its config is no hfdist.runs.config:Config"),
    (rewritten("hfdist.methods", "mine"), "--config CONFIG.py"),
    (rewritten(f'"classes": {CLASSES}', '"classes": 2'), "give --data.classes 3"),
    (lambda run: shutil.rmtree(run / "checkpoints"), "has no folder of checkpoints"),
    (lambda run: shutil.rmtree(run / "checkpoints/4"), "has no checkpoint of step 4"),
]


@pytest.mark.parametrize(("damage", "complaint"), DAMAGES)
def test_a_damaged_run_is_one_message_and_exit_code_2(
    damage, complaint, run_dir, tmp_path, monkeypatch, capsys
):
    run = shutil.copytree(run_dir, tmp_path / "run")
    damage(run)
    code, out, err = command(monkeypatch, capsys, run, "--step", "4")
    assert code == 2
    assert complaint in err
    assert err.count("\n") == 1
    assert not out


def test_a_run_without_checkpoints_is_named(run_dir, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(run_dir, tmp_path / "run")
    for step in (4, 8):
        shutil.rmtree(run / f"checkpoints/{step}")
    code, _, err = command(monkeypatch, capsys, run)
    assert code == 2
    assert "holds no checkpoint: let the run save one" in err


@pytest.mark.slow
def test_lanczos_on_a_trained_network(tmp_path):
    """784-2-10 on MNIST: moments within 1 %, the top within 1e-4 of the exact ones."""
    mnist = {"data": IDX(), "model": MLP(hidden=(2,)), "max_steps": 100}
    config = replace(CONFIG, run_dir=tmp_path / "run", **mnist)
    train(config)
    examples = spectrum.first_examples(config, 1000)
    problem, like = config.build_problem()
    _, params = spectrum.restore_params(tmp_path / "run", like)
    for curvature in ("hessian", "gauss_newton"):
        matrix = live_rows(matrix_of(problem, params, examples, curvature, None))
        truly = eigenvalues.exact(matrix, top=10)
        found = eigenvalues.from_products(matrix, top=10)
        assert found.moment(1) == pytest.approx(truly.moment(1), rel=0.01)
        assert found.moment(2) == pytest.approx(truly.moment(2), rel=0.01)
        np.testing.assert_allclose(found.top_K, truly.top_K, rtol=1e-4)
        assert found.smallest == pytest.approx(truly.smallest, abs=1e-6)
        below = np.sum(truly.values_V < -found.zero_below)
        assert found.negative_share * matrix.parameters == pytest.approx(below, abs=5)
