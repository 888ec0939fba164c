"""A choice is one new file: it is found, listed, used and checked by its name."""

import re
import shutil
import subprocess
import sys

import pytest

from hfdist import curvatures, damping, step_rules
from hfdist.choices import choices, chosen
from hfdist.errors import UsageError
from together import ROOT, clean_environment

FILES = {
    "damping/halved.py": """
def halved(damping, outcome):
    return damping / 2
""",
    "curvatures/twice_gauss_newton.py": """
from hfdist.curvatures.gauss_newton import gauss_newton
from optax import tree


def twice_gauss_newton(problem, params, batch):
    sums = gauss_newton(problem, params, batch)
    return sums._replace(product=lambda v: tree.scale(2, sums.product(v)))
""",
    "step_rules/quarter.py": """
from optax import tree

from hfdist.step import Step
from hfdist.step_rules.fixed_rate import fixed_rate


def quarter(proposal):
    return fixed_rate(proposal._replace(learning_rate=proposal.learning_rate / 4))
""",
    "solvers/one_step.py": """
from dataclasses import dataclass

import jax.numpy as jnp
from optax import tree

from hfdist.solvers.solution import Reason, Solution
from hfdist.solvers.solver import Solver


@dataclass(frozen=True, kw_only=True)
class OneStep(Solver):
    by_inner_products = True

    def solve(self, system):
        b, inner = system.b, system.inner
        a_b = system.product(b)
        alpha = inner(b, b) / inner(b, a_b)
        r = tree.add_scale(b, -alpha, a_b)
        norm = jnp.sqrt(inner(r, r) / inner(b, b))
        reason = jnp.int32(Reason.STEPS_USED_UP)
        return Solution(tree.scale(alpha, b), r, norm, jnp.int32(1), reason)

    def held(self, unknowns, examples):
        return unknowns
""",
}
# What CG makes of its first step is what the new solver makes; with twice the matrix at
# twice the damping it is half as long, and with a quarter of the rate an eighth.
USED = """
from dataclasses import dataclass, field
from pathlib import Path
import hfdist
from cases import Case, loop, relative_error
from jax import tree
from hfdist.methods.second_order import SecondOrder
from hfdist.runs.config import from_json, load, to_json
from hfdist.solvers.one_step import OneStep

@dataclass(frozen=True, kw_only=True)
class Mine(SecondOrder):
    one_step: OneStep = field(default_factory=OneStep)
    @property
    def solver(self):
        return self.one_step

case = Case("softmax_cross_entropy")
def step(method, count=1):
    after, infos = loop(method.build(case.problem), case.params, case.batch, count)
    return tree.map(lambda a, b: a - b, after, case.params), infos

choices = dict(
    curvature="twice_gauss_newton", damping_rule="halved", step_rule="quarter"
)
mine, _ = step(Mine(damping=2.0, **choices))
known, _ = step(hfdist.HessianFree(damping=1.0, cg=hfdist.CG(max_steps=1)))
assert relative_error(tree.map(lambda d: 8 * d, mine), known) < 1e-9
_, infos = step(Mine(damping=2.0, **choices), 3)
assert [float(info.damping) for info in infos] == [2.0, 1.0, 0.5]

config = Path("configs/paper/hf_gauss_newton.py")
words = [
    word
    for name, value in choices.items()
    for word in ("--method." + name.replace("_", "-"), value)
]
chosen = load(config, words)
assert chosen.method == hfdist.HessianFree(damping=4.0, **choices)
assert from_json(to_json(chosen)) == chosen
load(config, ["--help"])
"""


@pytest.mark.slow
def test_a_choice_is_one_new_file(tmp_path):
    for name in ("hfdist", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    for name, text in FILES.items():
        (tmp_path / "hfdist" / name).write_text(text)
    paths = f"{tmp_path}:{ROOT / 'tests'}"
    done = subprocess.run(
        [sys.executable, "-c", USED],
        cwd=tmp_path,
        env={**clean_environment(), "PYTHONPATH": paths, "JAX_ENABLE_X64": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    printed = re.sub(r"[\s│]", "", done.stdout)
    for listed in (
        "{constant,halved,levenberg_marquardt,next_batch,nielsen}",
        "{finite_difference,gauss_newton,hessian,layerwise_gauss_newton,"
        "twice_gauss_newton}",
        "{fixed_rate,line_search,quarter,two_term}",
    ):
        assert listed in printed, done.stdout


PACKAGES = {"curvature": curvatures, "damping_rule": damping, "step_rule": step_rules}


@pytest.mark.parametrize("setting", PACKAGES)
def test_every_file_holds_a_function_of_its_name(setting):
    for name in choices(PACKAGES[setting]):
        function = chosen(setting, name, PACKAGES[setting])
        assert function.__name__ == name
        assert function.__doc__


def test_a_file_that_is_added_is_a_choice(tmp_path, monkeypatch):
    (tmp_path / "halved.py").write_text(FILES["damping/halved.py"])
    monkeypatch.setattr(damping, "__path__", [*damping.__path__, str(tmp_path)])
    assert "halved" in choices(damping)
    assert chosen("damping_rule", "halved", damping)(3.0, None) == 1.5
    del sys.modules["hfdist.damping.halved"]


@pytest.mark.parametrize(
    "name", ["hesian", "../errors", "hessian.os", "os", "__init__", "", None]
)
def test_no_other_file_is_imported(name):
    before = set(sys.modules)
    with pytest.raises(UsageError, match=r"curvature is .*: use one of finite_diff"):
        chosen("curvature", name, curvatures)
    assert set(sys.modules) == before
