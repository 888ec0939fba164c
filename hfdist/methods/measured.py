"""What is known of a step, from the solve and from the loss after it."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from hfdist.methods.method import Info
from hfdist.outcome import Refusal, not_finite, reduction_ratio
from hfdist.pytree import PyTree, inner, roundoff, widen
from hfdist.quadratics import Value
from hfdist.step import Proposal, Step

# The difference of two losses is evidence above so many times the rounding of one.
ROUNDINGS = 8


def measured(value: Array, proposal: Proposal, step: Step) -> Info:
    """What is known of a step without the loss after it."""
    system, solution, damping, *_ = proposal
    squared_norm = system.inner(step.change, step.change)
    step_norm = jnp.sqrt(jnp.maximum(squared_norm, 0))
    gradient_norm = jnp.sqrt(jnp.maximum(system.inner(system.b, system.b), 0))
    finite = step_norm
    if solution.residual is not None:
        finite += solution.relative_residual
    refusal = not_finite(value, gradient_norm, finite)
    if step.lowers is not None:
        failed = (refusal == Refusal.NONE) & ~step.lowers
        refusal = jnp.where(failed, Refusal.NOT_LOWERED, refusal)
    unknown = jnp.full_like(value, jnp.nan)
    return Info(
        loss=value,
        damping=damping,
        rho=unknown,
        cg_steps=solution.steps,
        cg_residual=solution.relative_residual,
        step_norm=step_norm,
        accepted=refusal == Refusal.NONE,
        indefinite=solution.indefinite,
        gradient_norm=gradient_norm,
        predicted_decrease=step.predicted_decrease,
        actual_decrease=unknown,
        loss_after=unknown,
        refusal=refusal,
        solver_reason=solution.reason,
    )


def judged(
    info: Info,
    after: Value,
    params: PyTree,
    inner: Callable[[PyTree, PyTree], Array] = inner,
) -> Info:
    """The info with what the loss after the step says of it."""
    # A step shorter than the rounding of the params is no evidence of anything, unless
    # much of the loss hangs on it: params may be orders of magnitude apart.
    u, wide = roundoff(params), widen(params)
    short = info.step_norm <= u * jnp.sqrt(inner(wide, wide))
    short &= jnp.abs(info.predicted_decrease) <= math.sqrt(u) * jnp.abs(info.loss)
    resolution = jnp.where(short, jnp.inf, ROUNDINGS * after.rounding)

    decrease = info.loss - after.loss
    rho = reduction_ratio(decrease, info.predicted_decrease, resolution)
    evident = ~jnp.isnan(rho)
    rose = info.accepted & evident & ~(decrease >= 0)
    refusal = jnp.where(rose, Refusal.LOSS_ROSE, info.refusal)
    return info._replace(
        rho=jnp.where(info.indefinite & evident, -jnp.inf, rho),
        accepted=refusal == Refusal.NONE,
        actual_decrease=decrease,
        loss_after=after.loss,
        refusal=refusal,
    )
