"""The step s = α (a d + c s₋), along the solution and the step before."""

import jax.numpy as jnp
from optax import tree

from hfdist.choices import looking_back
from hfdist.pytree import inners
from hfdist.step import Proposal, Step


@looking_back
def two_term(proposal: Proposal) -> Step:
    """(a, c) are the minimum of the damped model over span{d, s₋}, s₋ the step before:

        | ⟨d, A d⟩   ⟨d, A s₋⟩  | |a|   |⟨d, b⟩ |
        | ⟨d, A s₋⟩  ⟨s₋, A s₋⟩ | |c| = |⟨s₋, b⟩|,    A = C + λD,  b = -g,

    an exact rate and momentum (Martens & Grosse 2015, section 7), from J d and J s₋,
    and of what is reduced four numbers. Where the model has no such minimum, or s₋ adds
    nothing, s₋ is left out: a is then that along d, or 1 where d has no positive
    curvature.
    """
    system, solution, damping, metric, rate, model, previous = proposal
    inner, b, d = system.inner, system.b, solution.x
    span = d, previous
    lengths = inners(span, [metric(v) for v in span], inner)
    (dd, dp), (_, pp) = model.form(span) + damping * lengths

    # Of d and s₋ at length 1 in A, whose squares could be too small for float32.
    d_length, p_length = (jnp.sqrt(jnp.where(q > 0, q, 1)) for q in (dd, pp))
    cosine = dp / d_length / p_length
    along_d, along_p = inner(d, b) / d_length, inner(previous, b) / p_length
    sine = 1 - cosine**2
    both = (dd > 0) & (pp > 0) & (sine > jnp.sqrt(jnp.finfo(dd.dtype).eps))
    sine = jnp.where(both, sine, 1)
    alone = jnp.where(dd > 0, along_d / d_length, 1)
    a = jnp.where(both, (along_d - cosine * along_p) / sine / d_length, alone)
    c = jnp.where(both, (along_p - cosine * along_d) / sine / p_length, 0)

    change = tree.add_scale(tree.scale(rate * a, d), rate * c, previous)
    s_a_s = rate**2 * (a * a * dd + 2 * a * c * dp + c * c * pp)
    s_c_s = s_a_s - damping * inner(change, metric(change))
    return Step(change, inner(change, b) - s_c_s / 2)
