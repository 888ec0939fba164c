"""The one frozen tree of settings that defines a run, and its file formats.

A config file is Python that defines `config = Config(...)`. The command line overrides
fields by name. A run directory keeps the resolved tree as JSON, from which it can be
rebuilt; there a dataclass is an object whose "class" is its import path.
"""

import dataclasses
import importlib
import runpy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import optax
import tyro

from hfdist import losses
from hfdist.checks import check_choices, check_positive
from hfdist.data.idx import IDX
from hfdist.errors import UsageError
from hfdist.methods.method import Method
from hfdist.models.mlp import MLP
from hfdist.models.model import Model, functional
from hfdist.problem import Problem
from hfdist.pytree import PyTree

Dtype = Literal["float32", "float64"]
Loss = Literal["softmax_cross_entropy", "sigmoid_cross_entropy", "squared_error"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a training run."""

    method: Method
    """Optimisation method."""
    model: Model = field(default_factory=MLP)
    """Network."""
    data: IDX = field(default_factory=IDX)
    """Training and test examples."""
    loss: Loss = "softmax_cross_entropy"
    """Per-example loss of the outputs."""
    l2: float = 0.0
    """Weight decay μ: training minimises the mean loss + ½ μ Σ w²; evaluations report
    the mean loss alone."""
    epochs: int = 7
    """Passes over the training examples."""
    batch_size: int = 64
    """Global batch: examples in one update, over all devices of all processes."""
    dtype: Dtype = "float32"
    """Number format of the params and of all arithmetic."""
    seed: int = 0
    """Seed of the initial params and of the order of the examples."""
    max_steps: int | None = None
    """End after this many updates, should the epochs not end first."""
    max_rejected: int = 10
    """End, as diverged, after this many rejected updates in a row."""
    devices: int = 1
    """Devices of each process to split each batch over; on the CPU, virtual ones."""
    run_dir: Path | None = None
    """Where the run is written; a new folder runs/<config>-<time> by default."""
    steps_per_dispatch: int = 67
    """Updates compiled into one scan: metrics arrive that many at a time, and a run
    saves or stops between two scans."""
    checkpoint_minutes: float = 1.0
    """Save when this long has passed since the last time, and always at the end."""
    checkpoint_steps: int | None = None
    """Save when this many updates have been made since the last time."""
    keep: int = 2
    """Newest checkpoints that are kept."""
    keep_every: int | None = None
    """Keep the checkpoints of steps divisible by this, too."""
    init_from: Path | None = None
    """Start from the newest params of another run's directory."""
    evaluation_batch_size: int = 1000
    """Test examples evaluated at a time."""
    compilation_cache: Path | None = Path("~/.cache/hfdist/xla")
    """Where compiled programs are kept between runs; None: nowhere."""
    tensorboard: bool = False
    """Write the metrics to RUN_DIR/tensorboard too (needs hfdist[tensorboard])."""
    wandb: bool = False
    """Send the metrics to Weights & Biases too (needs hfdist[wandb]); WANDB_MODE,
    WANDB_PROJECT and the like say how and where."""
    profile: bool = False
    """Trace the second scan of this command (--steps-per-dispatch updates) into
    RUN_DIR/profile, for TensorBoard's xprof or Perfetto."""

    def __post_init__(self):
        check_choices(self)
        check_positive("l2", self.l2, or_zero=True)
        for name, value in vars(self.method).items():
            if callable(value):
                raise UsageError(
                    f"method.{name} is a function, which config.json cannot hold: give "
                    f"a number here, and use schedules in a loop of your own"
                )
        for name, value in vars(self).items():
            least = 0 if name == "seed" else 1
            if type(value) is int and value < least:
                raise UsageError(f"{name} is {value}: use at least {least}")

    def build_problem(self, inputs: int) -> tuple[Problem, PyTree]:
        """The problem and the initial params, for examples of `inputs` features."""
        module = self.model.build(inputs, self.data.classes, self.seed)
        predict, params = functional(module)
        params = optax.tree.cast(params, self.dtype)
        return Problem(predict, getattr(losses, self.loss), self.l2), params


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The config that a Python file defines, with `--name value` overrides applied.

    Raises UsageError for a file that does not define one; an override that is unknown
    or does not fit its type ends the process with exit code 2 and a suggestion.
    """
    if not path.is_file():
        raise UsageError(f"config {path} does not exist or is not a file")
    try:
        variables = runpy.run_path(str(path))
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"config {path} cannot be run as Python ({type(error).__name__}: {error}): "
            f"it must be a file that defines `config = hfdist.config.Config(...)`"
        ) from error
    config = variables.get("config")
    if not isinstance(config, Config):
        found = "nothing" if config is None else f"a {type(config).__name__}"
        raise UsageError(
            f"config {path} defines {found} as `config`: add a line "
            f"`config = hfdist.config.Config(method=...)`"
        )
    return tyro.cli(
        Config,
        prog=f"hfdist train {path}",
        description=variables.get("__doc__"),
        default=config,
        args=list(overrides),
        config=(tyro.conf.AvoidSubcommands,),
    )


def to_json(value: Any) -> Any:
    """A config tree as JSON values."""
    if dataclasses.is_dataclass(value):
        path = f"{type(value).__module__}:{type(value).__qualname__}"
        return {"class": path, **{k: to_json(v) for k, v in vars(value).items()}}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_json(value: Any, hint: Any = None) -> Any:
    """The inverse of to_json; hint is the field's declared type."""
    if isinstance(value, dict):
        module, _, name = value["class"].partition(":")
        try:
            cls = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            raise UsageError(
                f"class {name} of this run cannot be imported from {module}: define it "
                f"in a module on the Python path, not in the config file"
            ) from None
        hints = get_type_hints(cls)
        arguments = {k: from_json(v, hints[k]) for k, v in value.items() if k in hints}
        return cls(**arguments)
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if isinstance(value, str) and Path in get_args(hint) else value
