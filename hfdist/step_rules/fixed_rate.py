"""The step s = α d."""

from optax import tree

from hfdist.step import Proposal, Step


def fixed_rate(proposal: Proposal) -> Step:
    """s = α d: the solution, times the learning rate (paper, Algorithm 2).

    With C d = b - r - λ D d, b = -g, no further product is needed for ⟨s, C s⟩, but
    where the solve took none and r is not known: there it is J s.
    """
    system, solution, damping, metric, learning_rate, model, _ = proposal
    step = tree.scale(learning_rate, solution.x)
    along_b = system.inner(step, system.b)
    if solution.residual is None:
        return Step(step, along_b - model.form([step])[0, 0] / 2)
    c_s = learning_rate * (along_b - system.inner(step, solution.residual))
    c_s -= damping * system.inner(step, metric(step))
    return Step(step, along_b - c_s / 2)
