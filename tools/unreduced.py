"""Newton's method with its matrix over all the params, as the paper has it."""

from dataclasses import dataclass, replace

from hfdist import Newton
from hfdist.config import Config

METHODS = ("newton", "damped_newton")


@dataclass(frozen=True, kw_only=True)
class Unreduced(Newton):
    """Newton without the input reduction of hfdist/reduction.py: N unknowns, not fewer.

    The reduction asks for a network that begins with inputs @ kernel, so one that
    begins with another operation is left as it is.
    """

    def build(self, problem, mesh=None):
        def predict(params, batch):
            return problem.predict(params, {**batch, "inputs": 1.0 * batch["inputs"]})

        return super().build(problem._replace(predict=predict), mesh)


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
