"""First-order methods: any optax optimiser, under the contract of this package."""

import abc
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from hfdist.checks import Count, Positive, Whole
from hfdist.errors import UsageError
from hfdist.methods.method import Method, State, initial_info
from hfdist.outcome import Refusal, not_finite
from hfdist.pytree import widen
from hfdist.quadratics import value_and_gradient
from hfdist.sharing import Sharding


@dataclass(frozen=True, kw_only=True)
class FirstOrder(Method):
    """An optax optimiser on f's gradient; an update that is not finite is skipped.

    A skipped update leaves the optimiser's own state (momentum …) as it was. A
    `curvature_batch` is left aside.
    """

    shardings: ClassVar[tuple[Sharding, ...]] = ("replicated", "params")

    learning_rate: Positive = 0.1
    """Step size α, at its highest; in your own loop, an optax schedule too."""
    warmup_steps: Annotated[int, Whole(0)] = 0
    """Updates in which α rises: the k-th takes α k / (warmup_steps + 1)."""
    decay_steps: Count | None = None
    """Update after which α, which falls along half a cosine, is 0; None: it stays."""

    def __post_init__(self):
        super().__post_init__()
        for field in fields(self):
            if field.name != "learning_rate" and callable(getattr(self, field.name)):
                raise UsageError(
                    f"{field.name} is a schedule: use a number, as the learning_rate "
                    f"alone may be one"
                )
        if not self.warmup_steps and self.decay_steps is None:
            return
        if callable(self.learning_rate):
            raise UsageError(
                "learning_rate is a schedule, and warmup_steps and decay_steps make "
                "one: give the highest rate, or leave them out"
            )
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise UsageError(
                f"decay_steps is {self.decay_steps}: use more than warmup_steps, "
                f"{self.warmup_steps}, which it counts too"
            )

    @property
    def rate(self) -> Any:
        """α: a number, or an optax schedule of the updates made so far."""
        peak, warmup = self.learning_rate, self.warmup_steps
        if not warmup and self.decay_steps is None:
            return peak
        after = optax.constant_schedule(peak)
        if self.decay_steps is not None:
            after = optax.cosine_decay_schedule(peak, self.decay_steps - warmup)
        if not warmup:
            return after
        rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
        return optax.join_schedules([rise, after], [warmup])

    @abc.abstractmethod
    def optimizer(self) -> optax.GradientTransformation:
        """The optax optimiser."""

    def init(self, params):
        return State(self.optimizer().init(params), initial_info(params))

    def on_shared(self, functions, state):
        optimizer, inner = self.optimizer(), state.inner
        inner = optax.tree.map_params(optimizer, functions.vector, inner)
        return state._replace(inner=inner)

    def step(
        self, problem, devices, gradient, state, params, batch, curvature_batch=None
    ):
        loss, own_gradient = value_and_gradient(problem, params, batch, devices)
        gradient = own_gradient if gradient is None else gradient

        def norm(tree):
            if not devices.vectors.shared:
                return optax.tree.norm(tree)
            wide = widen(tree)
            return jnp.sqrt(devices.inner(wide, wide))

        gradient_norm = norm(gradient)
        gradient = optax.tree.cast_like(gradient, params)
        # Optax multiplies its count of updates, an integer, by real numbers.
        with jax.numpy_dtype_promotion("standard"):
            step, inner = self.optimizer().update(gradient, state.inner, params)
        step_norm = norm(step)
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
