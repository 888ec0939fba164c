"""First-order methods: any optax optimiser, under the contract of this package."""

import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from hfdist.curvature import value_and_gradient
from hfdist.methods.method import State, initial_info, transformation
from hfdist.parallel import collectives
from hfdist.problem import Problem


def first_order(
    problem: Problem, mesh: Mesh | None, optimizer: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """optimizer on the batch's mean gradient; an update that is not finite is skipped.

    A skipped update leaves the optimiser's own state (momentum …) as it was.
    """
    devices = collectives(mesh)

    def init(params):
        return State(optimizer.init(params), initial_info(params))

    def step(gradient, state, params, batch):
        loss, own_gradient = value_and_gradient(problem, params, batch, devices)
        gradient = own_gradient if gradient is None else gradient
        step, inner = optimizer.update(gradient, state.inner, params)
        step_norm = optax.tree.norm(step)
        accepted = jnp.isfinite(loss) & jnp.isfinite(step_norm)
        info = state.info._replace(loss=loss, step_norm=step_norm, accepted=accepted)
        step = optax.tree.where(accepted, step, optax.tree.zeros_like(step))
        inner = optax.tree.where(accepted, inner, state.inner)
        return step, State(inner, optax.tree.cast_like(info, state.info))

    return transformation(init, step, mesh)
