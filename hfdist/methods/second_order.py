"""One second-order step, from its four choices.

    w ← w + α d,   (C + λI) d ≈ -∇f(w)

curvature C × solver × damping rule for λ × learning rate α (paper, eq. 2 and
Algorithm 2). The methods beside this file are points in that grid.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from optax import tree

from hfdist import curvature as curvatures
from hfdist.damping import (
    DampingRule,
    constant,
    levenberg_marquardt,
    reduction_ratio,
)
from hfdist.methods.method import Info, State, initial_info, transformation
from hfdist.parallel import collectives
from hfdist.problem import Problem
from hfdist.pytree import inner
from hfdist.solvers.solution import Solution


class Memory(NamedTuple):
    """What one step hands to the next."""

    damping: Any  # λ, ()
    start: Any  # where the solver starts, like params; None: from 0


def second_order(
    problem: Problem,
    mesh: Mesh | None,
    *,
    curvature: curvatures.Curvature,
    solve: Callable[..., Solution],
    damping: float,
    damping_rule: DampingRule,
    learning_rate: float,
    warm_start: float = 0.0,
    whole_batch: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The optax transformation of one choice; warm_start is the decay of d as a start.

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
        model = curvatures.quadratic(problem, params, batch, curvature, devices)
        gradient = model.gradient if gradient is None else gradient
        product = model.product
        if whole_batch and mesh is not None:
            product = _whole_product(problem, params, batch, curvature, devices)

        def damped_product(v):
            return tree.add_scale(product(v), memory.damping, v)

        b = tree.scale(-1, gradient)
        start = () if memory.start is None else (memory.start,)
        solution = solve(damped_product, b, *start)
        step = tree.scale(learning_rate, solution.x)

        tiny = jnp.finfo(model.value.dtype).tiny
        step_norm, residual_norm = tree.norm(step), tree.norm(solution.residual)
        accepted = jnp.isfinite(model.value + step_norm + residual_norm)
        rho = jnp.full_like(model.value, jnp.nan)
        next_damping = constant(memory.damping, damping, accepted)
        if damping_rule == "levenberg_marquardt":
            new_value = curvatures.mean_loss(
                problem, optax.apply_updates(params, step), batch, devices
            )
            predicted = _predicted_decrease(b, step, solution, memory, learning_rate)
            rho = reduction_ratio(model.value - new_value, predicted)
            rho = jnp.where(solution.indefinite, -jnp.inf, rho)
            accepted &= new_value <= model.value
            next_damping = levenberg_marquardt(memory.damping, rho)

        info = Info(
            loss=model.value,
            damping=memory.damping,
            rho=rho,
            cg_steps=solution.steps,
            cg_residual=residual_norm / jnp.maximum(tree.norm(b), tiny),
            step_norm=step_norm,
            accepted=accepted,
            indefinite=solution.indefinite,
        )
        zeros = tree.zeros_like(params)
        next_start = None
        if memory.start is not None:
            next_start = tree.where(accepted, tree.scale(warm_start, solution.x), zeros)
        step = tree.where(accepted, step, zeros)
        info = tree.cast_like(info, state.info)
        return step, State(Memory(next_damping, next_start), info)

    return transformation(init, step, mesh)


def _whole_product(problem, params, batch, curvature, devices):
    """v -> C v over the batch of all devices, computed on this one."""
    local, examples = devices.vary(params), devices.gather(batch)
    return curvatures.quadratic(
        problem, local, examples, curvature, collectives(None)
    ).product


def _predicted_decrease(b, step, solution, memory, learning_rate):
    """-(⟨g, s⟩ + ½ ⟨s, C s⟩) at the step s = α d, with λ left out (Martens 2010).

    C d needs no further product: C d = (b - residual) - λ d.
    """
    c_d = tree.sub(
        tree.sub(b, solution.residual), tree.scale(memory.damping, solution.x)
    )
    return inner(b, step) - learning_rate / 2 * inner(step, c_d)
