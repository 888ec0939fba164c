"""First-order methods: any optax optimiser, under the contract of this package."""

import abc
from dataclasses import dataclass

import optax

from hfdist.methods.method import Method, State, initial_info
from hfdist.outcome import Refusal, not_finite
from hfdist.quadratics import value_and_gradient


@dataclass(frozen=True, kw_only=True)
class FirstOrder(Method):
    """An optax optimiser on f's gradient; an update that is not finite is skipped.

    A skipped update leaves the optimiser's own state (momentum …) as it was. A
    `curvature_batch` is left aside.
    """

    @abc.abstractmethod
    def optimizer(self) -> optax.GradientTransformation:
        """The optax optimiser."""

    def init(self, params):
        return State(self.optimizer().init(params), initial_info(params))

    def step(
        self, problem, devices, gradient, state, params, batch, curvature_batch=None
    ):
        loss, own_gradient = value_and_gradient(problem, params, batch, devices)
        gradient = own_gradient if gradient is None else gradient
        gradient_norm = optax.tree.norm(gradient)
        gradient = optax.tree.cast_like(gradient, params)
        step, inner = self.optimizer().update(gradient, state.inner, params)
        step_norm = optax.tree.norm(step)
        refusal = not_finite(loss, gradient_norm, step_norm)
        accepted = refusal == Refusal.NONE
        info = state.info._replace(
            loss=loss,
            gradient_norm=gradient_norm,
            step_norm=step_norm,
            accepted=accepted,
            refusal=refusal,
        )
        step = optax.tree.where(accepted, step, optax.tree.zeros_like(step))
        inner = optax.tree.where(accepted, inner, state.inner)
        return step, State(inner, optax.tree.cast_like(info, state.info))
