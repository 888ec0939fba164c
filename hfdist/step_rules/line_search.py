"""The step s = α 0.8ʲ d, short enough to lower the loss."""

import jax
import jax.numpy as jnp
from optax import tree

from hfdist.step import Proposal, Step
from hfdist.step_rules.fixed_rate import fixed_rate

# As in the code that Martens (2010) published.
SUFFICIENT = 1e-2  # c, the part of the promised slope that the loss has to keep
SHRINK = 0.8
MOST_TRIES = 60


def line_search(proposal: Proposal) -> Step:
    """s = α 0.8ʲ d with the least j < 60 for which

        f(w + s) ≤ f(w) + c ⟨g, s⟩,   c = 1e-2   (Armijo 1966).

    A try is a forward pass over the batch. Without such a j, or where ⟨g, d⟩ ≥ 0, there
    is no step. The penalty counts in f and g.
    """
    longest = fixed_rate(proposal)
    model = proposal.model
    descent = proposal.system.inner(longest.change, proposal.system.b)  # -⟨g, α d⟩
    curvature = 2 * (descent - longest.predicted_decrease)

    def at(scale):
        return tree.scale(scale, longest.change)

    def enough(scale, after):
        fallen = after.loss <= model.value - SUFFICIENT * scale * descent
        return (descent > 0) & fallen

    def unfinished(carry):
        scale, after, tries = carry
        going = (tries < MOST_TRIES) & (descent > 0)
        return going & ~enough(scale, after)

    def shorter(carry):
        scale, _, tries = carry
        scale = SHRINK * scale
        return scale, model.value_at(at(scale)), tries + 1

    one = jnp.ones_like(descent)
    carry = (one, model.value_at(longest.change), jnp.int32(1))
    scale, after, _ = jax.lax.while_loop(unfinished, shorter, carry)
    predicted = scale * descent - scale**2 * curvature / 2
    return Step(at(scale), predicted, after, enough(scale, after))
