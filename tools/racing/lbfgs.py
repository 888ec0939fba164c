"""Optax's L-BFGS as a method of hfdist, for batches that are the same every step."""

from dataclasses import dataclass

import optax

from hfdist.checks import Count
from hfdist.methods.method import Method, State, initial_info
from hfdist.problem import weighted_sums


@dataclass(frozen=True, kw_only=True)
class LBFGS(Method):
    """Limited-memory BFGS (Liu & Nocedal 1989) with optax's zoom line search.

    The value and the gradient at the end of a line search are those that the next step
    begins with, which holds while the batch stays the same.
    """

    memory_size: Count = 10
    """Steps and differences of gradients that are remembered."""

    def init(self, params):
        return State(
            optax.lbfgs(memory_size=self.memory_size).init(params), initial_info(params)
        )

    def step(
        self, problem, devices, gradient, state, params, batch, curvature_batch=None
    ):
        def f(params):
            loss_sum, weight_sum = weighted_sums(
                problem, problem.predict(params, batch), batch
            )
            return loss_sum / weight_sum

        loss, gradient = optax.value_and_grad_from_state(f)(params, state=state.inner)
        step, inner = optax.lbfgs(memory_size=self.memory_size).update(
            gradient, state.inner, params, value=loss, grad=gradient, value_fn=f
        )
        info = state.info._replace(
            loss=loss,
            gradient_norm=optax.tree.norm(gradient),
            step_norm=optax.tree.norm(step),
        )
        return step, State(inner, optax.tree.cast_like(info, state.info))
