"""One second-order step, from its four choices.

    w ← w + α d,   (C + λI) d ≈ -∇f(w)

curvature C × solver × damping rule for λ × learning rate α (paper, eq. 2 and
Algorithm 2). The methods beside this file are points in that grid. The solve is in the
coordinates of reduction.py that suit the solver, where the step lies in their range:
if it starts from 0 and its gradient is the batch's own.
"""

from collections.abc import Callable
from functools import partial
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
from hfdist.reduction import Coordinates, first_product, full, pulled_back
from hfdist.solvers.solution import Solution


class Choice(NamedTuple):
    """A point in the grid of second-order methods."""

    curvature: Curvature
    solve: Callable[..., Solution]  # (product, b, x0, inner), in the coordinates
    coordinates: Callable[..., Coordinates]  # gram or orthonormal
    damping: float  # λ, or λ₀ where it adapts
    damping_rule: DampingRule
    learning_rate: float  # α
    warm_start: float = 0.0  # decay of d as the solver's next start; 0: from 0
    # Products over the whole batch on every device, not over its share and all-reduced.
    whole_batch: bool = False


class Memory(NamedTuple):
    """What one step hands to the next."""

    damping: Any  # λ, ()
    start: Any  # where the solver starts, like params; None: from 0


def second_order(
    problem: Problem, mesh: Mesh | None, choice: Choice
) -> optax.GradientTransformationExtraArgs:
    """The optax transformation of one choice.

    A step that is not finite is rejected: the update is zero and λ is raised. With
    Levenberg-Marquardt damping, so is a step that raises the batch's loss.
    """
    devices = collectives(mesh)

    def init(params):
        info = initial_info(params, choice.damping)
        start = tree.zeros_like(params) if choice.warm_start else None
        # A copy: no buffer may stand twice in a state that a caller donates.
        return State(Memory(jnp.copy(info.damping), start), info)

    def step(gradient, state, params, batch):
        memory = state.inner
        reducible = gradient is None and memory.start is None
        model_of = partial(_model, problem, choice, reducible)
        with jax.named_scope("gradient"):
            space, model = model_of(params, batch, devices)
        product = model.product
        if choice.whole_batch and mesh is not None:
            local, examples = devices.vary((params, devices.gather(batch)))
            _, whole = model_of(local, examples, collectives(None))
            product = whole.product

        def damped_product(v):
            with jax.named_scope("product"):
                return tree.add_scale(product(v), memory.damping, v)

        def loss_after(step):
            moved = optax.apply_updates(space.params, space.into(step))
            return mean_loss(space.problem, moved, batch, devices)

        b = tree.scale(-1, model.gradient if gradient is None else gradient)
        with jax.named_scope("solve"):
            solution = choice.solve(damped_product, b, memory.start, space.inner)
        step = tree.scale(choice.learning_rate, solution.x)
        info, damping = _judged(
            choice, memory.damping, model.value, b, solution, step, space, loss_after
        )
        zeros = tree.zeros_like(params)
        start = memory.start
        if start is not None:
            start = tree.scale(choice.warm_start, solution.x)
            start = tree.where(info.accepted, start, zeros)
        step = tree.where(info.accepted, space.expand(step), zeros)
        return step, State(Memory(damping, start), tree.cast_like(info, state.info))

    return transformation(init, step, mesh)


def _model(problem, choice, reducible, params, batch, devices):
    """The coordinates to solve in, and the batch's quadratic model in them."""
    first = first_product(problem, params, batch, devices) if reducible else None
    space = choice.coordinates(first, devices) if first else full(problem, params)
    model = quadratic(space.problem, space.params, batch, choice.curvature, devices)
    return space, pulled_back(model, space)


def _judged(choice, damping, value, b, solution, step, space, loss_after):
    """What the step did, whether it is accepted, and the next λ."""
    step_norm = jnp.sqrt(jnp.maximum(space.inner(step, step), 0))
    accepted = jnp.isfinite(value + step_norm + solution.relative_residual)
    rho = jnp.full_like(value, jnp.nan)
    if choice.damping_rule == "constant":
        next_damping = constant(damping, choice.damping, accepted)
    else:
        decrease = value - loss_after(step)
        # C d needs no further product: C d = (b - residual) - λ d.
        c_d = tree.sub(tree.sub(b, solution.residual), tree.scale(damping, solution.x))
        # -(⟨g, s⟩ + ½ ⟨s, C s⟩) at s = α d, with λ left out (Martens 2010).
        model = tree.add_scale(b, -choice.learning_rate / 2, c_d)
        rho = reduction_ratio(decrease, space.inner(step, model))
        rho = jnp.where(solution.indefinite, -jnp.inf, rho)
        accepted &= decrease >= 0
        next_damping = levenberg_marquardt(damping, rho)
    info = Info(
        loss=value,
        damping=damping,
        rho=rho,
        cg_steps=solution.steps,
        cg_residual=solution.relative_residual,
        step_norm=step_norm,
        accepted=accepted,
        indefinite=solution.indefinite,
    )
    return info, next_damping
