"""One second-order step, from its four choices.

    w ← w + α d,   (C + λI) d ≈ -∇f(w)

curvature C × solver × damping rule for λ × learning rate α (paper, eq. 2 and
Algorithm 2). The methods beside this file are points in that grid. The solve is in the
coordinates of reduction.py that suit the solver, where the step lies in their range:
if it starts from 0 and its gradient is the batch's own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from optax import tree

from hfdist.curvature import Curvature, mean_loss, quadratic
from hfdist.damping import (
    DampingRule,
    constant,
    levenberg_marquardt,
    reduction_ratio,
)
from hfdist.methods.method import Info, State, initial_info, transformation
from hfdist.parallel import collectives
from hfdist.problem import Problem
from hfdist.reduction import Coordinates, first_product, full
from hfdist.solvers.solution import Solution


class Memory(NamedTuple):
    """What one step hands to the next."""

    damping: Any  # λ, ()
    start: Any  # where the solver starts, like params; None: from 0


def second_order(
    problem: Problem,
    mesh: Mesh | None,
    *,
    curvature: Curvature,
    solve: Callable[..., Solution],
    coordinates: Callable[..., Coordinates],
    damping: float,
    damping_rule: DampingRule,
    learning_rate: float,
    warm_start: float = 0.0,
    whole_batch: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The optax transformation of one choice; warm_start is the decay of d as a start.

    `solve(product, b, x0, inner)` works in the `coordinates`: gram or orthonormal.

    The solver's products are over each device's share of the batch, all-reduced, or,
    with whole_batch, over the whole batch on every device, and not reduced.

    A step that is not finite is rejected: the update is zero and λ is raised. With
    Levenberg-Marquardt damping, so is a step that raises the batch's loss.
    """
    devices = collectives(mesh)

    def init(params):
        info = initial_info(params, damping)
        start = tree.zeros_like(params) if warm_start else None
        # A copy: no buffer may stand twice in a state that a caller donates.
        return State(Memory(jnp.copy(info.damping), start), info)

    def step(gradient, state, params, batch):
        memory = state.inner

        def choose(params, batch, devices):
            in_range = gradient is None and memory.start is None
            first = first_product(problem, params, batch, devices) if in_range else None
            return coordinates(first, devices) if first else full(problem, params)

        space = choose(params, batch, devices)
        with jax.named_scope("gradient"):
            model = quadratic(space.problem, space.params, batch, curvature, devices)
        product = model.product
        if whole_batch and mesh is not None:
            product = _whole_product(choose, params, batch, curvature, devices)

        def damped_product(v):
            with jax.named_scope("product"):
                c_v = space.back(product(space.into(v)))
            return tree.add_scale(c_v, memory.damping, v)

        b = space.back(tree.scale(-1, model.gradient if gradient is None else gradient))
        with jax.named_scope("solve"):
            solution = solve(damped_product, b, memory.start, space.inner)
        step = tree.scale(learning_rate, solution.x)

        step_norm = jnp.sqrt(jnp.maximum(space.inner(step, step), 0))
        accepted = jnp.isfinite(model.value + step_norm + solution.relative_residual)
        rho = jnp.full_like(model.value, jnp.nan)
        next_damping = constant(memory.damping, damping, accepted)
        if damping_rule == "levenberg_marquardt":
            moved = optax.apply_updates(space.params, space.into(step))
            new_value = mean_loss(space.problem, moved, batch, devices)
            predicted = _predicted_decrease(
                b, step, solution, memory.damping, learning_rate, space.inner
            )
            rho = reduction_ratio(model.value - new_value, predicted)
            rho = jnp.where(solution.indefinite, -jnp.inf, rho)
            accepted &= new_value <= model.value
            next_damping = levenberg_marquardt(memory.damping, rho)

        info = Info(
            loss=model.value,
            damping=memory.damping,
            rho=rho,
            cg_steps=solution.steps,
            cg_residual=solution.relative_residual,
            step_norm=step_norm,
            accepted=accepted,
            indefinite=solution.indefinite,
        )
        zeros = tree.zeros_like(params)
        next_start = None
        if memory.start is not None:
            next_start = tree.where(accepted, tree.scale(warm_start, solution.x), zeros)
        step = tree.where(accepted, space.expand(step), zeros)
        info = tree.cast_like(info, state.info)
        return step, State(Memory(next_damping, next_start), info)

    return transformation(init, step, mesh)


def _whole_product(choose, params, batch, curvature, devices):
    """v -> C v over the batch of all devices, computed on this one."""
    local, examples = devices.vary((params, devices.gather(batch)))
    alone = collectives(None)
    space = choose(local, examples, alone)
    return quadratic(space.problem, space.params, examples, curvature, alone).product


def _predicted_decrease(b, step, solution, damping, learning_rate, inner):
    """-(⟨g, s⟩ + ½ ⟨s, C s⟩) at the step s = α d, with λ left out (Martens 2010).

    C d needs no further product: C d = (b - residual) - λ d.
    """
    c_d = tree.sub(tree.sub(b, solution.residual), tree.scale(damping, solution.x))
    return inner(step, b) - learning_rate / 2 * inner(step, c_d)
