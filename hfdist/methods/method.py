"""The contract of an optimisation method, and how it becomes an optax transformation.

A method is a frozen dataclass of hyper-parameters with `init` and `step`. To add one,
write one file beside this one; a config imports its class.
"""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, ClassVar, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from hfdist.batches import check_batch, examples_in
from hfdist.checks import Count, Settings, check_choice, fitted
from hfdist.errors import UsageError
from hfdist.jacobian import without_jacobian
from hfdist.outcome import Refusal
from hfdist.parallel import Collectives, collectives, data_parallel
from hfdist.problem import Batch, Problem, check_penalty
from hfdist.pytree import PyTree, check_differentiable, working_dtype
from hfdist.sharing import Functions, Sharding, places, share_out, specs_of
from hfdist.solvers.solution import Reason
from hfdist.where_used import where_used


class Info(NamedTuple):
    """What one update did, in scalars; 0 where a method has no such quantity.

    NaN where it is not known: what would take a forward pass that the damping rule does
    not need, and a ratio of decreases that are both within rounding.
    """

    loss: Array  # f(w) of the batch, before the update
    damping: Array  # the λ that the update was made with
    rho: Array  # reduction ratio, actual / predicted decrease; NaN: no evidence
    cg_steps: Array
    cg_residual: Array  # ‖b - A x‖ / ‖b‖ of the linear solve
    step_norm: Array  # ‖step‖, also of a step that was not accepted
    accepted: Array  # bool; False: the update is zero
    indefinite: Array  # bool; the solver met negative curvature
    gradient_norm: Array  # ‖∇f(w)‖, or of the gradient that was passed in
    predicted_decrease: Array  # f(w) - f(w + step) by the quadratic model
    actual_decrease: Array  # f(w) - f(w + step) itself
    loss_after: Array  # f(w + step)
    refusal: Array  # int32, a Refusal: why the update is zero
    solver_reason: Array  # int32, a Reason: why the linear solve ended


class State(NamedTuple):
    """A method's memory: `inner` is the method's own, `info` the last update's."""

    inner: Any
    info: Info


@dataclass(frozen=True, kw_only=True)
class Method(Settings, abc.ABC):
    """Hyper-parameters of an optimisation method."""

    scheduled: ClassVar[bool] = True
    shardings: ClassVar[tuple[Sharding, ...]] = ("replicated",)  # that it allows

    @abc.abstractmethod
    def init(self, params: PyTree) -> State:
        """The state before the first update."""

    @abc.abstractmethod
    def step(
        self,
        problem: Problem,
        devices: Collectives,
        gradient: PyTree | None,
        state: State,
        params: PyTree,
        batch: Batch,
        curvature_batch: Batch | None,
    ) -> tuple[PyTree, State]:
        """The update of the params and the next state, from one device's share.

        Sums go through `devices`; `gradient` is one passed in, in place of the
        batch's own.
        """

    def on_shared(self, functions: Functions, state: State) -> State:
        """The state with the functions applied to what devices may share out of it."""
        del functions
        return state

    def explain(
        self,
        problem: Problem,
        params: PyTree,
        batch: Batch,
        curvature_batch: Batch | None = None,
        micro_batch_size: int | None = None,
    ) -> str:
        """What the method makes of a problem by itself, in words; "": nothing."""
        del problem, params, batch, curvature_batch, micro_batch_size
        return ""

    def build(
        self,
        problem: Problem,
        mesh: Mesh | None = None,
        replicated: Sequence[str] = (),
        micro_batch_size: int | None = None,
        sharding: Sharding = "replicated",
    ) -> optax.GradientTransformationExtraArgs:
        """The optax transformation of the method for a problem.

            updates, state = optimizer.update(None, state, params, batch=batch)

        None stands for the gradient: the method computes its own. With a mesh, the
        rows of each batch are split over its devices, but for the entries named in
        `replicated`, which every device has whole. `curvature_batch=` in `update` gives
        the products examples of their own. With a `micro_batch_size` a device takes so
        many examples at a time, in their memory, and each product computes the forward
        pass again. With sharding="vectors" a device has 1/P of each vector of the
        solve, and of those in the state; the params are whole. With sharding="params"
        it has 1/P of each array of the params too, and of the update, along a side that
        the devices divide.

        Raises UsageError, while tracing, for params, batches and losses that do not
        fit: see the messages.
        """
        if isinstance(replicated, str):
            raise UsageError(f"replicated is {replicated!r}: use ({replicated!r},)")
        micro_batch_size = fitted("micro_batch_size", micro_batch_size, Count | None)
        check_choice("sharding", sharding, get_args(Sharding))
        self.check_sharding(sharding)
        if mesh is not None or micro_batch_size is not None:
            problem = problem._replace(loss=one_a_row(problem.loss, replicated))
        devices = collectives(mesh, replicated, micro_batch_size, sharding)
        step = self._over(problem, devices, mesh, sharding)

        def init(params):
            check_params(problem, params)
            state = self.init(params)
            if mesh is None or sharding == "replicated":
                return state
            return self.on_shared(share_out(sharding, mesh), state)

        def update(
            updates,
            state,
            params=None,
            *,
            batch=None,
            curvature_batch=None,
            **extra_args,
        ):
            """Extra arguments are for the other members of an `optax.chain`."""
            del extra_args
            if params is None or batch is None:
                raise UsageError(
                    "this optimiser reads the params and the batch: call "
                    "optimizer.update(None, state, params, batch=batch) (a "
                    "TrainState's apply_gradients passes no batch: call its tx.update)"
                )
            check_params(problem, params)
            for examples in (batch, curvature_batch):
                if examples is not None:
                    check_batch(examples, replicated)
            return step(updates, state, params, batch, curvature_batch)

        return optax.GradientTransformationExtraArgs(init, update)

    def check_sharding(self, sharding: Sharding) -> None:
        """Raise UsageError for one that the method does not allow."""
        if sharding not in self.shardings:
            raise UsageError(
                f"{type(self).__name__} cannot share out {sharding}: use sharding="
                f"{' or '.join(map(repr, self.shardings))}, or hfdist.HessianFree"
            )

    def places(self, sharding: Sharding, devices: int, held: Any) -> Any:
        """Where the leaves of (gradient, state, params) are, over so many devices."""
        if sharding == "replicated":
            return specs_of(held)
        of, (gradient, state, params) = places(sharding, devices), held
        if sharding == "params":
            gradient, params = of.vector(gradient), of.vector(params)
        return specs_of((gradient, self.on_shared(of, state), params))

    def _over(self, problem, devices, mesh, sharding) -> Callable:
        """The step over the devices of a mesh, or over none."""

        def parallel(problem, devices):
            step = partial(self.step, problem, devices)
            at = partial(self.places, sharding, devices.size)
            return data_parallel(step, mesh, devices.replicated, at)

        if mesh is None or sharding != "params":
            return parallel(problem, devices)

        def step(gradient, state, params, *batches):
            over = devices.sharing_params(params)
            # A Jacobian is whole columns, and would be made anew for each product.
            plain = without_jacobian(problem.predict)

            def predict(params, batch):
                return plain(over.own_whole(params), batch)

            own = problem._replace(predict=where_used(predict))
            return parallel(own, over)(gradient, state, params, *batches)

        return step


def make_step(
    optimizer: optax.GradientTransformationExtraArgs,
) -> Callable[..., Any]:
    """An update with an optimiser of `build`, to be scanned over batches.

    (params, state), batch -> (params, state), info

    A third argument, or None, is the curvature batch.
    """
    update: Callable[..., Any] = optimizer.update

    def step(carry, batch, curvature_batch=None):
        params, state = carry
        updates, state = update(
            None, state, params, batch=batch, curvature_batch=curvature_batch
        )
        return (optax.apply_updates(params, updates), state), state.info

    return step


def initial_info(params: PyTree, damping: Any = 0.0) -> Info:
    """The info before any update, in the dtypes that updates will give it."""
    scalar = partial(jnp.full, (), dtype=working_dtype(params))
    return Info(
        loss=scalar(0),
        damping=scalar(damping),
        rho=scalar(jnp.nan),
        cg_steps=jnp.int32(0),
        cg_residual=scalar(0),
        step_norm=scalar(0),
        accepted=jnp.bool(True),
        indefinite=jnp.bool(False),
        gradient_norm=scalar(0),
        predicted_decrease=scalar(jnp.nan),
        actual_decrease=scalar(jnp.nan),
        loss_after=scalar(jnp.nan),
        refusal=jnp.int32(Refusal.NONE),
        solver_reason=jnp.int32(Reason.CONVERGED),
    )


def one_a_row(loss, replicated):
    """The loss, refused where it does not return one number for each row it is given.

    Over devices or micro-batches anything else would count some examples more often
    than others.
    """

    @wraps(loss)
    def checked(outputs, batch):
        losses_B, examples = loss(outputs, batch), examples_in(batch, replicated)
        if losses_B.shape[:1] != (examples,):
            raise UsageError(
                f"the loss returned shape {losses_B.shape} for {examples} examples: "
                f"over a mesh, or in micro-batches, it must return one number for each "
                f"row of the batch's entries that are split"
            )
        return losses_B

    return checked


def check_params(problem: Problem, params: PyTree) -> None:
    """Raise UsageError for params that are not all there to be differentiated."""
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if any(isinstance(leaf, optax.MaskedNode) for leaf in leaves):
        raise UsageError(
            "optax.masked and optax.partition hide params that predict needs: to "
            "freeze some, close over them in predict, and train the others alone"
        )
    check_differentiable(params)
    check_penalty(problem, params)
