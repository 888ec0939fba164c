"""The suite must be able to fail: each named mistake turns it red.

A mutation is a replacement in one file of a copy of the package; the tests that should
notice run on the copy.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DIVIDE = "leaf / scalar.astype(leaf.dtype)"
TRANSPOSED = "(jt_hessian_jv,) = vjp(hessian_jv)"
RESIDUAL = "r = tree.where(positive, tree.add_scale(r, -alpha, a_p), r)"
START = "start = () if memory.start is None else (memory.start,)"

# name: (file, what stands there, what replaces it, the tests that notice)
MUTATIONS = {
    "drop the 1/N": ("pytree.py", DIVIDE, "leaf", "curvature"),
    "drop the damping": (
        "methods/second_order.py",
        "tree.add_scale(model.product(v), memory.damping, v)",
        "model.product(v)",
        "methods",
    ),
    "transpose J for the wrong examples": (
        "curvature.py",
        TRANSPOSED,
        "(jt_hessian_jv,) = vjp(jax.tree.map(lambda u: u[::-1], hessian_jv))",
        "curvature",
    ),
    "forget H_z": (
        "curvature.py",
        "_, hessian_jv = output_hessian(jvp(v))",
        "hessian_jv = jvp(v)",
        "curvature",
    ),
    "ignore the weights": (
        "problem.py",
        'weights_B = batch.get("weights")',
        "weights_B = None",
        "curvature",
    ),
    "forget the residual update": ("solvers/cg.py", RESIDUAL, "r = r", "cg"),
    "forget the warm start": (
        "methods/second_order.py",
        START,
        "start = ()",
        "methods",
    ),
    "walk on through negative curvature": (
        "solvers/cg.py",
        "positive = p_a_p > 0",
        "positive = p_a_p == p_a_p",
        "cg",
    ),
    "accept every step": (
        "methods/second_order.py",
        "step = tree.where(accepted, step, zeros)",
        "pass",
        "methods",
    ),
    "never fall back to LU": (
        "solvers/dense.py",
        "indefinite = ~jnp.all(jnp.isfinite(jnp.diagonal(factor_NN)))",
        "indefinite = jnp.bool(False)",
        "dense",
    ),
    "skip the all-reduce": (
        "parallel.py",
        "jax.lax.psum(tree, AXIS)",
        "tree",
        "parallel",
    ),
    "all-reduce the product twice": (
        "curvature.py",
        "devices.reduce(local_product(devices.vary(v)))",
        "devices.reduce(devices.reduce(local_product(devices.vary(v))))",
        "parallel",
    ),
    "drop the last, partial batch": (
        "data/pipeline.py",
        "-(-len(self.examples.labels) // self.batch_size)",
        "len(self.examples.labels) // self.batch_size",
        "data",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_the_suite_notices(tmp_path, name):
    file, old, new, noticing = MUTATIONS[name]
    shutil.copytree(ROOT / "hfdist", tmp_path / "hfdist")
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    source = (tmp_path / "hfdist" / file).read_text()
    assert source.count(old) == 1, f"{old!r} is not there once: mend this mutation"
    (tmp_path / "hfdist" / file).write_text(source.replace(old, new))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-xq", f"tests/test_{noticing}.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{tmp_path / 'tests'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert " failed" in done.stdout
