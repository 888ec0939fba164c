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
TRANSPOSED = "return at.vjp(hessian_jv)"
RESIDUAL = "r = tree.where(positive, tree.add_scale(r, -alpha, a_p), r)"
PSUM = "jax.lax.psum(flat, AXIS)"
REDUCED = "vectors.collect(product_sum, ())[0]"
START = "System(damped_product, b, memory.start, space.inner)"

# name: (file, what stands there, what replaces it, the tests that notice)
MUTATIONS = {
    "drop the 1/N": ("pytree.py", DIVIDE, "leaf", "curvature"),
    "drop the damping": (
        "methods/second_order.py",
        "tree.add_scale(model.product(v), damping, times_d(v))",
        "model.product(v)",
        "methods",
    ),
    "transpose J for the wrong examples": (
        "curvatures/gauss_newton.py",
        TRANSPOSED,
        "return at.vjp(hessian_jv[::-1])",
        "curvature",
    ),
    "forget H_z": (
        "curvatures/gauss_newton.py",
        "hessian_jv = at.output_hessian(at.jvp(v))",
        "hessian_jv = at.jvp(v)",
        "curvature",
    ),
    "take all params for one layer": (
        "curvatures/layerwise_gauss_newton.py",
        "layers = layers_of(params)",
        "layers = [[*range(len(jax.tree.leaves(params)))]]",
        "layerwise",
    ),
    "forget H_z in the matrix": (
        "curvatures/gauss_newton.py",
        "flat(jax.vmap(at.output_hessian)(j_N))",
        "flat(j_N)",
        "curvature",
    ),
    "put the root of H_z on the wrong side": (
        "outputs.py",
        "rows_of(*transposed(at.jvp(v)))",
        "rows_of(rooted(at.jvp(v)))",
        "outputs",
    ),
    "make a device's columns of its own rows alone": (
        "outputs.py",
        "every.into(own.back(devices.vary(unit_M)))",
        "jnp.tile(own.into(own.back(devices.vary(unit_M))), devices.size)",
        "outputs",
    ),
    "solve for the outputs once": (
        "outputs.py",
        "REFINEMENTS = 2",
        "REFINEMENTS = 0",
        "outputs",
    ),
    "leave weight decay out of the outputs' damping": (
        "methods/posed.py",
        "damping + at.problem.l2",
        "damping",
        "outputs",
    ),
    "try one λ alone": (
        "methods/second_order.py",
        "again & (tried < self.most_tries)",
        "again & (tried < 1)",
        "tries",
    ),
    "weigh the damping of all params alike": (
        "methods/posed.py",
        "shifted(matrix_NN, damping * d_N)",
        "shifted(matrix_NN, damping)",
        "scaled_damping",
    ),
    "scale the damping by the curvature of now": (
        "scales.py",
        "jnp.where(larger_N, diagonal_N, scales_N)",
        "diagonal_N",
        "scaled_damping",
    ),
    "pull towards the step before with no damping": (
        "spring.py",
        "tree.scale(damping, p)",
        "p",
        "spring",
    ),
    "ignore the weights": (
        "problem.py",
        'weights_B = batch.get("weights")',
        "weights_B = None",
        "curvature",
    ),
    "forget the residual update": ("solvers/cg.py", RESIDUAL, "r = r", "cg"),
    "leave out the factor k of progress": (
        "solvers/cg.py",
        "k * progress * phi",
        "progress * phi",
        "cg",
    ),
    "precondition the residual and not its length": (
        "solvers/cg.py",
        "return z, inner(at.r, z)",
        "return z, at.rr",
        "cg",
    ),
    "damp both factors alike": (
        "preconditioners/kronecker.py",
        "jnp.sqrt(damping * n / m)",
        "jnp.sqrt(damping)",
        "preconditioners",
    ),
    "draw the same signs on every device": (
        "probes.py",
        "devices.share(jnp.arange(devices.size * examples))",
        "jnp.arange(examples)",
        "parallel",
    ),
    "bring params together that a mesh splits": (
        "pytree.py",
        "jnp.tensordot(a, b, a.ndim,",
        "jnp.vdot(a, b,",
        "model_axis",
    ),
    "reduce them in one buffer": (
        "parallel.py",
        "all_reduce if alone else",
        "all_reduce if True else",
        "model_axis",
    ),
    "count the last micro-batch alone": (
        "micro_batches.py",
        "tree.add(total, of_part(part))",
        "of_part(part)",
        "micro_batches",
    ),
    "draw the same signs in every micro-batch": (
        "probes.py",
        "summed(local, devices, batch, places_B)",
        "summed(lambda b, p: local(b, jnp.arange(len(p))), devices, batch, places_B)",
        "micro_batches",
    ),
    "forget that the weights are under the root": (
        "roots.py",
        "jnp.sqrt(w) * row",
        "w * row",
        "preconditioners",
    ),
    "leave the damping out of the sketch": (
        "preconditioners/nystrom.py",
        "sketch.values + damping",
        "sketch.values",
        "nystrom",
    ),
    "believe a sketch that is not finite": (
        "preconditioners/nystrom.py",
        "tree.where(finite, Sketch(vectors, values_R), sketch)",
        "Sketch(vectors, values_R)",
        "nystrom",
    ),
    "go back though the loss rises": (
        "backtracking.py",
        "(found < lowest) | ~jnp.isfinite(lowest)",
        "found == found",
        "backtracking",
    ),
    "keep the last iterate's residual": (
        "backtracking.py",
        "tree.sub(system.b, system.product(x))",
        "solution.residual",
        "backtracking",
    ),
    "start warm from where the walk ended": (
        "methods/second_order.py",
        "damping, last, step.change",
        "damping, solution.x, step.change",
        "backtracking",
    ),
    "take the step before for the one after": (
        "step_rules/two_term.py",
        "along_p - cosine * along_d",
        "along_p + cosine * along_d",
        "step_rules",
    ),
    "forget the step before": (
        "methods/second_order.py",
        "previous = if_accepted(change)",
        "previous = tree.zeros_like(change)",
        "step_rules",
    ),
    "reduce no part of ⟨v, C v⟩": (
        "quadratics.py",
        "devices.reduce(local) / weight_sum",
        "local / weight_sum",
        "step_rules",
    ),
    "take a step that a line search gave up": (
        "methods/measured.py",
        "(refusal == Refusal.NONE) & ~step.lowers",
        "(refusal == Refusal.NONE) & ~step.lowers & False",
        "step_rules",
    ),
    "take any decrease for enough": (
        "step_rules/line_search.py",
        "model.value - SUFFICIENT * scale * descent",
        "model.value",
        "step_rules",
    ),
    "forget the warm start": (
        "methods/second_order.py",
        START,
        START.replace("memory.start", "None"),
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
        "update = tree.where(info.accepted, update, zeros)",
        "update = update",
        "methods",
    ),
    "never fall back to LU": (
        "solvers/dense.py",
        "positive = jnp.all(jnp.isfinite(jnp.diagonal(factor_NN)))",
        "positive = jnp.bool(True)",
        "dense",
    ),
    "skip the all-reduce": (
        "sharing.py",
        PSUM,
        "flat",
        "parallel",
    ),
    "all-reduce twice": (
        "sharing.py",
        PSUM,
        f"jax.lax.psum({PSUM}, AXIS)",
        "parallel",
    ),
    "forget the product's all-reduce": (
        "quadratics.py",
        REDUCED,
        "product_sum",
        "parallel",
    ),
    "read a shared vector from its padding": (
        "sharing.py",
        "unravel(flat[: len(whole)])",
        "unravel(flat[-len(whole) :])",
        "sharding",
    ),
    "count a whole leaf once for each device": (
        "sharing.py",
        "(wholes if axis is None else parts).append",
        "parts.append",
        "sharded_params",
    ),
    "leave sums of whole leaves to each device": (
        "sharing.py",
        "places = [k for k, axis in enumerate(axes) if axis is None]",
        "places = []",
        "sharded_params",
    ),
    "keep what is made of a weight": (
        "where_used.py",
        "kind.name in FORMS",
        "False",
        "where_used",
    ),
    "all-reduce the product twice": (
        "quadratics.py",
        REDUCED,
        f"devices.reduce({REDUCED})",
        "parallel",
    ),
    "measure reduced steps by their coordinates": (
        "coordinates.py",
        "inner=lambda a, b: inner(a[0], b[1])",
        "inner=lambda a, b: inner(a[0], b[0])",
        "reduction",
    ),
    "find the inputs by their name's place among sorted names": (
        "first_product.py",
        "invars[count + entries.index(INPUTS)]",
        "invars[count + sorted(batch).index('inputs')]",
        "batches",
    ),
    "split the entries that are replicated": (
        "batches.py",
        "return entry_name(path) in replicated",
        "return False",
        "batches",
    ),
    "take rounding for evidence": (
        "outcome.py",
        "jnp.isfinite(size) & (size <= resolution)",
        "jnp.isfinite(size) & (size < 0)",
        "levenberg_marquardt",
    ),
    "excuse any loss whose rounding overflows": (
        "quadratics.py",
        "jnp.where(jnp.isfinite(squares), squares, 0)",
        "squares",
        "value_at",
    ),
    "leave the penalty out of the products": (
        "quadratics.py",
        "product if penalised(problem) else mean_product",
        "mean_product",
        "l2",
    ),
    "judge a step by the batch of its products": (
        "methods/posed.py",
        "model = model._replace(value=value, gradient=own, value_at=at_d)",
        "model = model._replace(value=value, gradient=own)",
        "curvature_batch",
    ),
    "solve in the params' own dtypes": (
        "pytree.py",
        "return tree.cast(params, working_dtype(params))",
        "return params",
        "dtypes",
    ),
    "measure the next batch's slope and not its curvature": (
        "hindsight.py",
        "model.form([step])[0, 0]",
        "inner(step, step)",
        "hindsight",
    ),
    "raise the damping for noise without end": (
        "damping/next_batch.py",
        "jnp.maximum(damping, first)",
        "jnp.inf",
        "damping",
    ),
    "look for the length along the solution alone": (
        "step_rules/two_term.py",
        "span = d, previous",
        "span = d, tree.zeros_like(previous)",
        "step_rules",
    ),
    "keep a schedule's first value": (
        "methods/second_order.py",
        "return setting(count) if callable(setting) else setting",
        "return setting(0 * count) if callable(setting) else setting",
        "settings",
    ),
    "drop the last, partial batch": (
        "tasks/passes.py",
        "return -(-self.examples // self.start.size)",
        "return self.examples // self.start.size",
        "pipeline",
    ),
    "begin a pass anew where batches grow": (
        "tasks/passes.py",
        "start = self.legs[-1].place(first)._replace(size=size)",
        "start = Place(self.legs[-1].place(first).epoch, 0, size)",
        "passes",
    ),
    "take the products over the first rows of all": (
        "batches.py",
        "leaf.reshape(groups, q, *shape)[:, :p]",
        "leaf.reshape(q, groups, *shape)[:p]",
        "batches",
    ),
    "leave a fit's sigma out of the residuals": (
        "fitting/normal.py",
        "per_sigma * (z - y)",
        "z - y",
        "fit",
    ),
    "hold no param of a fit at its bound": (
        "fitting/descent.py",
        "np.flatnonzero(~held_N)",
        "np.arange(len(p_N))",
        "fit",
    ),
    "square the condition of a fit's Jacobian": (
        "fitting/covariance.py",
        "matrix_NN = in_basis(basis_NN)",
        "return basis_NN @ basis_NN.T",
        "fit",
    ),
    "save what another process saves too": (
        "runs/parts.py",
        "if shard.replica_id:",
        "if False:",
        "parts",
    ),
    "take a piece as it is read": (
        "runs/parts.py",
        "if (seen := _checksum(raw)) != self.checksum:",
        "if (seen := _checksum(raw)) is None:",
        "parts",
    ),
    "take a range from where its piece begins": (
        "runs/parts.py",
        "_box(start - piece.start, end - piece.start)",
        "_box(start - start, end - start)",
        "parts",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_the_suite_notices(tmp_path, name):
    *mutation, noticing = MUTATIONS[name]
    done = run_mutated(tmp_path, [mutation], noticing)
    assert done.returncode == 1, done.stdout + done.stderr
    assert " failed" in done.stdout


def run_mutated(tmp_path, replacements, noticing):
    shutil.copytree(ROOT / "hfdist", tmp_path / "hfdist")
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    for file, old, new in replacements:
        source = (tmp_path / "hfdist" / file).read_text()
        assert source.count(old) == 1, f"{old!r} is not there once: mend this mutation"
        (tmp_path / "hfdist" / file).write_text(source.replace(old, new))
    paths = ":".join(str(tmp_path / folder) for folder in ("", "tests", "tools"))
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-xq", f"tests/test_{noticing}.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
