"""One second-order step, from its choices.

    w ← w + s,   s = α d,   (C + λI) d ≈ -∇f(w)

curvature C × solver × damping rule for λ × step rule (paper, eq. 2 and Algorithm 2).
The methods beside this file are points in that grid. posed.py says where a step is
solved for: in the span of the inputs if the step lies there, so that it starts from 0
and its gradient is that of the batch of its products.
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
from hfdist.errors import UsageError
from hfdist.hindsight import Hindsight, no_hindsight, rate, seen_after
from hfdist.methods.measured import judged, measured
from hfdist.methods.method import Info, Method, State, initial_info
from hfdist.methods.posed import Examples, Posed, Way, explained, place_of, posed
from hfdist.outcome import Outcome, before_the_step
from hfdist.parallel import ONE_DEVICE
from hfdist.preconditioner import Preconditioner
from hfdist.pytree import parameter_count, widen
from hfdist.quadratics import Curvature, Quadratic
from hfdist.solvers.solver import Solver
from hfdist.solvers.system import System
from hfdist.spring import solved_near
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
    def by_outputs(self) -> bool:
        """Whether the solve may be for the outputs."""
        return False

    @property
    def pull(self) -> float:
        """β of spring.py."""
        return 0.0

    @property
    def most_tries(self) -> int:
        """How many λ one update may try, where λ follows ρ."""
        return 1

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
        examples, others = batch, None
        if curvature_batch is not None:
            examples, others = curvature_batch, batch
        at = Examples(problem, params, examples, devices)
        question = posed(self._way, at, gradient, others)
        memory, space, model = state.inner, question.space, question.model
        if memory.hindsight is not None:
            seen = seen_after(memory.hindsight, memory.previous, model, space.inner)
            memory = memory._replace(hindsight=seen)
        attempt = partial(self._attempt, at, question, state.info)
        memory, info, change = self._attempts(attempt, memory, state.info, model)
        updates = jnp.asarray(optax.safe_increment(memory.updates))
        zeros = tree.zeros_like(params)
        update = tree.cast_like(space.expand(change), params)
        update = tree.where(info.accepted, update, zeros)
        return update, State(memory._replace(updates=updates), info)

    def explain(
        self, problem, params, batch, curvature_batch=None, micro_batch_size=None
    ):
        device = ONE_DEVICE._replace(micro_batch_size=micro_batch_size)
        at = Examples(problem, params, batch, device)
        place = place_of(self._way, at, alone=curvature_batch is None)
        return explained(place, parameter_count(params))

    def _attempts(self, attempt, memory: Memory, info: Info, model: Quadratic):
        """What an attempt returns, of the first λ of a few whose step is not refused.

        A constant λ is tried once, and so is one after a loss or gradient that is not
        finite.
        """
        if not self.adaptive or self.most_tries == 1:
            return attempt(memory)

        def unfinished(carry):
            (_, info, _), tried = carry
            again = ~info.accepted & ~before_the_step(info.refusal)
            return (tried == 0) | (again & (tried < self.most_tries))

        def next_one(carry):
            (memory, _, _), tried = carry
            return attempt(memory), tried + 1

        start = (memory, info, tree.zeros_like(model.gradient)), jnp.int32(0)
        return jax.lax.while_loop(unfinished, next_one, start)[0]

    def _attempt(self, at: Examples, question: Posed, like: Info, memory: Memory):
        """The memory after a step with its λ, the step's info, and the step."""
        space, model, solve, samples = question
        learning_rate, damping = self._now(memory, like.loss.dtype)

        def damped_product(v):
            with jax.named_scope("product"):
                return tree.add_scale(model.product(v), damping, v)

        b = tree.scale(-1, model.gradient)
        system = System(damped_product, b, memory.start, space.inner)
        if preconditioning := self.preconditioning:
            with jax.named_scope("probe"):
                learnt = preconditioning.learn(
                    memory.learnt, samples, memory.updates + 1, damping
                )
            memory = memory._replace(learnt=learnt)

            def precondition(v):
                return preconditioning.apply(learnt, damping, v, samples.held)

            system = system._replace(precondition=precondition)
        with jax.named_scope("solve"):
            if self.pull:
                p = tree.scale(self.pull / learning_rate, memory.previous)
                solve = partial(solved_near, p, solve)
            solution = solve(system, damping)
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
            info = judged(info, after, at.params, at.devices.inner)
        memory = self._remembered(memory, info, damping, last, step.change)
        return memory, tree.cast_like(info, like), step.change

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
        kept = looks_back(self._rule) or self._in_hindsight
        return kept or bool(self.pull)

    def _now(self, memory: Memory, dtype: Any) -> tuple[Array, Array]:
        """α and λ of this update."""
        learning_rate = jnp.asarray(_at(self.learning_rate, memory.updates), dtype)
        if self.adaptive:
            return learning_rate, memory.damping
        damping = jnp.asarray(_at(self.damping, memory.updates), dtype)
        return learning_rate, jnp.maximum(damping, memory.damping)

    @property
    def _way(self) -> Way:
        """How and where a step is solved for."""
        why = ""
        if not self.input_reduction:
            why = "input_reduction is off"
        elif self.start_decay:
            why = "the solver starts warm"
        elif self.preconditioning:
            why = "the solver is preconditioned"
        elif self._looks_back:
            why = "the step before is looked back at"
        return Way(self.curvature, self.solver, why, self.by_outputs)

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
            damping=damping, refused=refused, start=start, previous=previous
        )


def _at(setting: Any, count: Array) -> Any:
    """The value of a number or of a schedule after so many updates."""
    return setting(count) if callable(setting) else setting
