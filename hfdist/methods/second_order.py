"""One second-order step, from its choices.

    w ← w + s,   s = α d,   (C + λI) d ≈ -∇f(w)

curvature C × solver × damping rule for λ × step rule (paper, eq. 2 and Algorithm 2).
The methods beside this file are points in that grid. The solve is in the coordinates
of coordinates.py that suit the solver, where the step lies in their range: if it
starts from 0 and its gradient is that of the batch of its products.
"""

import abc
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax import tree

from hfdist import damping as damping_rules
from hfdist import step_rules
from hfdist.backtracking import backtracked
from hfdist.checks import NonNegative, Positive, known
from hfdist.choices import choices, chosen, looks_back
from hfdist.coordinates import full, gram, orthonormal, pulled_back
from hfdist.errors import UsageError
from hfdist.first_product import Shorter, first_product, shorten
from hfdist.hindsight import Hindsight, no_hindsight, rate, seen_after
from hfdist.methods.measured import judged, measured
from hfdist.methods.method import Info, Method, State, initial_info
from hfdist.outcome import Outcome, before_the_step
from hfdist.parallel import ONE_DEVICE
from hfdist.preconditioner import Preconditioner
from hfdist.pytree import parameter_count, widen
from hfdist.quadratics import Curvature, quadratic, value_and_gradient, value_at
from hfdist.samples import samples_of
from hfdist.solvers.solver import Solver
from hfdist.solvers.system import System
from hfdist.step import Proposal, Rule

if TYPE_CHECKING:
    DampingRule = StepRule = str
else:
    DampingRule = Literal[choices(damping_rules)]
    StepRule = Literal[choices(step_rules)]


class Memory(NamedTuple):
    """What one step hands to the next."""

    updates: Array  # () int32, made so far, by which schedules go
    damping: Array  # (), what the damping rule says of the next λ
    refused: Array  # () int32, steps refused in a row
    start: Any  # where the solver starts, like params; None: from 0
    learnt: Any  # what the preconditioner knows; None: there is none
    previous: Any  # the step before, for a rule that looks back; or None
    hindsight: Hindsight | None  # on the steps before, for such a damping rule


@dataclass(frozen=True, kw_only=True)
class SecondOrder(Method):
    """A point in the grid of second-order methods.

    A step that is not finite is refused: the update is zero. Where λ follows ρ, so is a
    step that raises the batch's f; a line search refuses one that does not lower it.
    """

    damping: NonNegative = 4.0
    """Damping λ, or λ₀ where it adapts; in your own loop, an optax schedule too."""
    learning_rate: Positive = 0.5
    """Step size α; in your own loop, an optax schedule too."""
    curvature: Curvature = "gauss_newton"
    """The matrix: Gauss-Newton, exact Hessian, or Hessian by finite differences."""
    damping_rule: DampingRule = "constant"
    """Keep λ, or let it follow the reduction ratio: Levenberg-Marquardt for batches,
    Nielsen's for a whole batch every step."""
    damping_bounds: tuple[Positive, Positive] = (1e-10, 1e10)
    """Least and greatest λ that the damping rule may come to."""
    step_rule: StepRule = "fixed_rate"
    """How far to go along the solution: α times it; line_search, at most that, as far
    as the loss falls; two_term, α times the best of it and the step before."""
    input_reduction: bool = True
    """Solve in the span of the batch's inputs where that gives the same step."""

    def __post_init__(self):
        super().__post_init__()
        low, high = self.damping_bounds
        if low > high:
            raise UsageError(f"damping_bounds are {low} … {high}: give the least first")
        if not self.adaptive:
            return
        if callable(self.damping):
            raise UsageError(
                f"damping is a schedule, but {self.damping_rule} moves λ itself: give "
                f"λ₀, or damping_rule='constant'"
            )
        if known(self.damping) and not low <= self.damping <= high:
            raise UsageError(
                f"damping is {self.damping}, outside damping_bounds {low} … {high}: "
                f"{self.damping_rule} needs a λ₀ within"
            )

    @property
    @abc.abstractmethod
    def solver(self) -> Solver:
        """What solves (C + λI) d = -∇f(w)."""

    @property
    def start_decay(self) -> float:
        """ξ: the next solve starts from ξ times this solution; 0: from 0."""
        return 0.0

    @property
    def preconditioning(self) -> Preconditioner | None:
        """What makes the solver's steps fewer; None: nothing."""
        return None

    @property
    def adaptive(self) -> bool:
        """Whether λ follows the loss after the step."""
        return self.damping_rule != "constant"

    def init(self, params):
        learnt, wide = None, widen(params)
        if preconditioning := self.preconditioning:
            learnt = preconditioning.init(params)
        info = initial_info(params, _at(self.damping, jnp.int32(0)))
        # A copy: no buffer may stand twice in a state that a caller donates.
        damping = jnp.copy(info.damping) if self.adaptive else 0 * info.damping
        memory = Memory(
            updates=jnp.int32(0),
            damping=damping,
            refused=jnp.int32(0),
            start=tree.zeros_like(wide) if self.start_decay else None,
            learnt=learnt,
            previous=tree.zeros_like(wide) if self._looks_back else None,
            hindsight=no_hindsight(info.loss.dtype) if self._in_hindsight else None,
        )
        return State(memory, info)

    def on_shared(self, functions, state):
        memory = state.inner
        start, learnt, previous = memory.start, memory.learnt, memory.previous
        if start is not None:
            start = functions.vector(start)
        if preconditioning := self.preconditioning:
            learnt = preconditioning.on_shared(functions, learnt)
        if previous is not None:
            previous = functions.vector(previous)
        memory = memory._replace(start=start, learnt=learnt, previous=previous)
        return state._replace(inner=memory)

    def step(
        self, problem, devices, gradient, state, params, batch, curvature_batch=None
    ):
        memory = state.inner
        learning_rate, damping = self._now(memory, state.info.loss.dtype)
        with jax.named_scope("gradient"):
            space, model = self._model(
                problem, devices, gradient, params, batch, curvature_batch
            )
        if memory.hindsight is not None:
            seen = seen_after(memory.hindsight, memory.previous, model, space.inner)
            memory = memory._replace(hindsight=seen)

        def damped_product(v):
            with jax.named_scope("product"):
                return tree.add_scale(model.product(v), damping, v)

        b = tree.scale(-1, model.gradient)
        system = System(damped_product, b, memory.start, space.inner)
        if preconditioning := self.preconditioning:
            examples = batch if curvature_batch is None else curvature_batch
            samples = samples_of(problem, params, examples, devices)
            with jax.named_scope("probe"):
                learnt = preconditioning.learn(
                    memory.learnt, samples, memory.updates + 1, damping
                )
            memory = memory._replace(learnt=learnt)

            def precondition(v):
                return preconditioning.apply(learnt, damping, v, samples.held)

            system = system._replace(precondition=precondition)
        with jax.named_scope("solve"):
            solution = self.solver.solve(system)
        last = solution.x
        with jax.named_scope("backtracking"):
            solution = backtracked(system, solution, model, learning_rate)
        proposal = Proposal(
            system, solution, damping, learning_rate, model, memory.previous
        )
        with jax.named_scope("step"):
            step = self._rule(proposal)
        info = measured(model.value, proposal, step)
        after = step.after
        if self.adaptive and after is None:
            after = model.value_at(step.change)
        if after is not None:
            info = judged(info, after, params, devices.inner)
        memory = self._remembered(memory, info, damping, last, step.change)
        zeros = tree.zeros_like(params)
        update = tree.cast_like(space.expand(step.change), params)
        update = tree.where(info.accepted, update, zeros)
        return update, State(memory, tree.cast_like(info, state.info))

    def explain(
        self, problem, params, batch, curvature_batch=None, micro_batch_size=None
    ):
        n, alone = parameter_count(params), curvature_batch is None
        device = ONE_DEVICE._replace(micro_batch_size=micro_batch_size)
        shorter = self._shorter(problem, params, batch, device, alone)
        if isinstance(shorter, str):
            return f"solves for all {n:,} params, as {shorter}"
        kernel = jax.tree.leaves(params)[shorter.kernel]
        unknowns = n - kernel.size + len(batch["inputs"]) * kernel.shape[1]
        return f"solves in the span of the inputs: {unknowns:,} unknowns, not {n:,}"

    @property
    def _rule(self) -> Rule:
        return chosen("step_rule", self.step_rule, step_rules)

    @property
    def _damping_rule(self):
        return chosen("damping_rule", self.damping_rule, damping_rules)

    @property
    def _in_hindsight(self) -> bool:
        """Whether λ goes by what the next batch says of a step."""
        return looks_back(self._damping_rule)

    @property
    def _looks_back(self) -> bool:
        """Whether the step before is kept."""
        return looks_back(self._rule) or self._in_hindsight

    def _now(self, memory: Memory, dtype: Any) -> tuple[Array, Array]:
        """α and λ of this update."""
        learning_rate = jnp.asarray(_at(self.learning_rate, memory.updates), dtype)
        if self.adaptive:
            return learning_rate, memory.damping
        damping = jnp.asarray(_at(self.damping, memory.updates), dtype)
        return learning_rate, jnp.maximum(damping, memory.damping)

    def _model(self, problem, devices, gradient, params, batch, curvature_batch):
        """Coordinates to solve in, and f's model in them.

        The products are over the examples of the curvature batch, all else is of the
        batch.
        """
        alone = gradient is None and curvature_batch is None
        examples = batch if curvature_batch is None else curvature_batch
        space, model = self._curvature(problem, devices, params, examples, alone)
        if curvature_batch is not None:
            value, own = value_and_gradient(problem, params, batch, devices)
            at = partial(value_at, problem, params, batch, devices)
            model = model._replace(value=value, gradient=own, value_at=at)
        if gradient is not None:
            given = tree.cast(gradient, model.value.dtype)
            model = model._replace(gradient=devices.vectors.part(given))
        return space, pulled_back(model, space)

    def _curvature(self, problem, devices, params, examples, alone):
        """Coordinates to solve in, and the quadratic model in their own params."""
        shorter = self._shorter(problem, params, examples, devices, alone)
        if isinstance(shorter, str):
            space = full(problem, params, devices)
        else:
            first = first_product(shorter, problem.loss, params, examples, devices)
            coordinates = gram if self.solver.by_inner_products else orthonormal
            space = coordinates(first, devices)
        return space, quadratic(
            space.problem, space.params, examples, self.curvature, devices
        )

    def _shorter(self, problem, params, batch, devices, alone=True) -> Shorter | str:
        """The network behind its first product, or why the solve is not reduced."""
        if not self.input_reduction:
            return "input_reduction is off"
        if devices.vectors.shared:
            return "its vectors are shared out over the devices"
        if devices.micro_batch_size is not None:
            return "the batch is taken in micro-batches"
        if self.start_decay:
            return "the solver starts warm"
        if self.preconditioning:
            return "the solver is preconditioned"
        if self._looks_back:
            return "the step before is looked back at"
        if not alone or "inputs" in devices.replicated:
            return "the gradient is of other examples than the products"
        params = devices.vary(params)
        return shorten(problem, params, batch, devices.size, self.solver.held)

    def _remembered(self, memory: Memory, info: Info, damping, x, change) -> Memory:
        """What the next step needs."""

        def if_accepted(vector):
            return tree.where(info.accepted, vector, tree.zeros_like(vector))

        start, previous = memory.start, memory.previous
        if start is not None:
            start = if_accepted(tree.scale(self.start_decay, x))
        if previous is not None:
            previous = if_accepted(change)
        kept = before_the_step(info.refusal)
        refused = jnp.where(kept, memory.refused, memory.refused + 1)
        refused = jnp.where(info.accepted, 0, refused)
        outcome = Outcome(
            info.rho,
            info.refusal,
            refused,
            jnp.asarray(_at(self.damping, memory.updates), damping.dtype),
            self.damping_bounds,
            rate(memory.hindsight),
        )
        # ρ may be wider.
        damping = self._damping_rule(damping, outcome).astype(damping.dtype)
        return memory._replace(
            updates=jnp.asarray(optax.safe_increment(memory.updates)),
            damping=damping,
            refused=refused,
            start=start,
            previous=previous,
        )


def _at(setting: Any, count: Array) -> Any:
    """The value of a number or of a schedule after so many updates."""
    return setting(count) if callable(setting) else setting
