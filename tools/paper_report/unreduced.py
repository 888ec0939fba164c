"""Solves over all the params, as the paper has them."""

from dataclasses import replace

from hfdist.methods.second_order import SecondOrder
from hfdist.runs.config import Config

METHODS = ("newton", "damped_newton")


def unreduced(config: Config, steps: int) -> Config:
    """So many steps of a Newton config, unreduced, in a folder beside its own."""
    assert config.run_dir is not None
    assert isinstance(config.method, SecondOrder)
    name, _, seed = config.run_dir.name.rpartition("-")
    return replace(
        config,
        method=replace(config.method, input_reduction=False),
        max_steps=steps,
        run_dir=config.run_dir.with_name(f"{name}_unreduced-{seed}"),
    )
