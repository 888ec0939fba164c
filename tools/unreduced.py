"""Solves over all the params, as the paper has them."""

from dataclasses import dataclass, replace

import jax

from hfdist import Newton, Problem
from hfdist.config import Config

METHODS = ("newton", "damped_newton")


@dataclass(frozen=True, kw_only=True)
class Unreduced(Newton):
    """Newton without the input reduction of hfdist/reduction.py: all N unknowns."""

    def build(self, problem, mesh=None):
        return super().build(in_all_params(problem), mesh)


def in_all_params(problem: Problem) -> Problem:
    """The same problem, never reduced: its first product is inside a program."""
    return problem._replace(predict=jax.jit(problem.predict))


def unreduced(config: Config, steps: int) -> Config:
    """So many steps of a Newton config, unreduced, in a folder beside its own."""
    assert config.run_dir is not None
    name, _, seed = config.run_dir.name.rpartition("-")
    return replace(
        config,
        method=Unreduced(**vars(config.method)),
        max_steps=steps,
        run_dir=config.run_dir.with_name(f"{name}_unreduced-{seed}"),
    )
