"""The one frozen tree of settings that defines a run, and its file formats.

A config file is Python that defines `config = Config(...)`. The command line overrides
fields by name. A run directory keeps the resolved tree as JSON, from which it can be
rebuilt; there a dataclass is an object whose "class" is its import path.
"""

import importlib
import inspect
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro
from jax.errors import JAXTypeError

from hfdist.checks import (
    Count,
    NonNegative,
    Real,
    Settings,
    Whole,
    class_name,
    shown,
)
from hfdist.errors import UsageError, told
from hfdist.memory import check_device_memory
from hfdist.methods.first_order import FirstOrder
from hfdist.methods.method import Method
from hfdist.models.mlp import MLP
from hfdist.models.model import Model
from hfdist.problem import Problem, penalised
from hfdist.pytree import PyTree, parameter_count
from hfdist.sharing import Sharding
from hfdist.tasks.idx import IDX
from hfdist.tasks.returned import problem_of
from hfdist.tasks.task import Task

Dtype = Literal["float32", "float64"]

# Where hfdist's own classes of settings are, and those that its users add to it.
OWN_MODULE = re.compile(
    r"hfdist\.(methods|models|tasks|solvers)(\.[A-Za-z_]\w*)*", re.A
)
MODULE = "<run_path>"  # of a config file's own classes, as runpy calls it


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings of a training run."""

    method: Method
    """Optimisation method."""
    model: Model = field(default_factory=MLP)
    """Network."""
    data: Task = field(default_factory=IDX)
    """What is learnt, from which examples."""
    l2: NonNegative = 0.0
    """Weight decay μ: training minimises the mean loss + ½ μ Σ w²; evaluations report
    the mean loss alone."""
    epochs: Count = 7
    """Passes over the training examples."""
    batch_size: Count = 64
    """Global batch: examples in one update, over all devices of all processes."""
    batch_growth: tuple[tuple[Count, Count], ...] = ()
    """Pairs of updates and batch size, both rising: after so many updates of the run
    batches have that size. 938 128 1407 256 doubles it twice."""
    curvature_fraction: Annotated[float, Real(0.001, most=1)] = 1.0
    """Share of each batch's examples that the curvature products are over, evenly
    spread; the loss and the gradient are over all."""
    micro_batch_size: Count | None = None
    """Examples that a device takes at a time, in whose memory a step is then made; each
    product computes the forward pass again. None: all of its share, linearised once."""
    sharding: Sharding = "replicated"
    """What the devices share out beside the batch: nothing, vectors (those of the solve
    and of the method's state), or the params too, gathered where they are used."""
    dtype: Dtype = "float32"
    """Number format of the params and of all arithmetic."""
    seed: Annotated[int, Whole(0, 2**32 - 1)] = 0
    """Seed of the initial params and of the order of the examples."""
    max_steps: Count | None = None
    """End after this many updates, should the epochs not end first."""
    max_rejected: Count = 10
    """End, as diverged, after this many rejected updates in a row."""
    devices: Annotated[int, Whole(1, 1024)] = 1  # virtual ones take memory each
    """Devices of each process to split each batch over; on the CPU, virtual ones."""
    run_dir: Path | None = None
    """Where the run is written; a new folder runs/<config>-<time> by default."""
    steps_per_dispatch: Count = 67
    """Updates compiled into one scan: metrics arrive that many at a time, and a run
    saves or stops between two scans."""
    checkpoint_minutes: NonNegative = 1.0
    """Save when this long has passed since the last time, and always at the end."""
    checkpoint_steps: Count | None = None
    """Save when this many updates have been made since the last time."""
    keep: Count = 2
    """Newest checkpoints that are kept."""
    keep_every: Count | None = None
    """Keep the checkpoints of steps divisible by this, too."""
    init_from: Path | None = None
    """Start from the newest params of another run's directory."""
    evaluation_epochs: Count = 1
    """Epochs from one evaluation to the next: where a batch is the whole data set, an
    epoch is a step."""
    evaluation_batch_size: Count = 1000
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
        super().__post_init__()
        self._check_batches()
        to_json(self)  # or config.json cannot hold it

    def _check_batches(self) -> None:
        """Raise UsageError for sizes that do not rise, or a share of no products."""
        pairs = [(0, self.batch_size), *self.batch_growth]
        for before, after in pairwise(pairs):
            if not (before[0] < after[0] and before[1] < after[1]):
                raise UsageError(
                    f"batch_growth is {self.batch_growth}, after batch_size "
                    f"{self.batch_size}: let updates and sizes rise from pair to pair"
                )
        if self.curvature_fraction < 1 and isinstance(self.method, FirstOrder):
            raise UsageError(
                f"curvature_fraction is {self.curvature_fraction:g}, but "
                f"{type(self.method).__name__} has no curvature: leave it at 1"
            )

    def build_problem(self, shares: int = 1) -> tuple[Problem, PyTree]:
        """The problem and the initial params, of which a device is to have a share.

        An l2 of the problem's own, such as a tree of them, stays where the config has
        none. Raises UsageError, before they are made, for params whose share no
        memory could hold.
        """
        make = partial(problem_of, self.data, self.model, self.seed)
        _check_memory(lambda: make()[1], self.dtype, shares)
        problem, params = make()
        if self.l2 and penalised(problem):
            raise UsageError(
                f"l2 is {self.l2:g}, and {type(self.data).__name__}.problem has an l2 "
                f"of its own: leave one of them out"
            )
        if self.l2:
            problem = problem._replace(l2=self.l2)
        # A copy: training donates them, and the problem may hold on to its own.
        return problem, jax.tree.map(partial(jnp.array, dtype=self.dtype), params)


def _check_memory(init: Callable[[], PyTree], dtype: Dtype, shares: int) -> None:
    """Raise UsageError if one of so many shares of the params cannot fit, by their
    shapes."""
    try:
        count = parameter_count(jax.eval_shape(init))
    except JAXTypeError:  # a model of a caller's own that computes with its params
        return
    each = f", 1/{shares} on each device" if shares > 1 else ""
    check_device_memory(
        2 * count * jnp.dtype(dtype).itemsize // shares,
        f"the model has {count:,} params, which take, with their gradient{each},",
        "use a smaller one, by fewer or narrower layers (--model.hidden of an MLP)",
    )


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The config that a Python file defines, with `--name value` overrides applied.

    Raises UsageError for a file that does not define one; an override that is unknown
    or does not fit its type ends the process with exit code 2 and a suggestion.
    """
    if not os.path.isfile(path):
        raise UsageError(f"config {path} does not exist or is not a file")
    # A config imports what lies beside it, as a script does, but behind all else.
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    try:
        variables = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        raise _raised_in(path, error) from error
    # Kept as a module: annotations that are text are read in their class's.
    module = ModuleType(MODULE)
    vars(module).update(variables)
    sys.modules[MODULE] = module  # whatever it calls itself
    config = variables.get("config")
    if not isinstance(config, Config):
        found = "nothing" if config is None else f"a {type(config).__name__}"
        raise UsageError(
            f"config {path} defines {found} as `config`: add a line "
            f"`config = hfdist.runs.config.Config(method=...)`"
        )
    try:
        return tyro.cli(
            Config,
            prog=f"hfdist train {path}",
            description=inspect.getdoc(module),
            default=config,
            args=list(overrides),
            config=(tyro.conf.AvoidSubcommands,),
        )
    except Exception as error:  # of a class of the file's own, which an override made
        raise _raised_in(path, error) from error


def _raised_in(path: Path, error: BaseException) -> UsageError:
    """What a config file raised, and in which of its lines."""
    frames = traceback.extract_tb(error.__traceback__)
    numbers = [frame.lineno for frame in frames if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        numbers.append(error.lineno)
    where = f"config {path}, line {numbers[-1]}," if numbers else f"config {path}"
    if isinstance(error, UsageError):
        return UsageError(f"{where.removesuffix(',')}: {error}")
    return UsageError(
        f"{where} cannot be run as Python ({told(error)}): it must "
        f"be a file that defines `config = hfdist.runs.config.Config(...)`"
    )


def to_json(value: Any, path: Callable[[Path], str] = str, name: str = "") -> Any:
    """A config tree as JSON values, its paths as `path` writes them.

    Raises UsageError for what JSON cannot hold, by the name of the value.
    """
    match value:
        case Settings():
            values = {
                field.name: to_json(
                    getattr(value, field.name), path, f"{name}.{field.name}"
                )
                for field in fields(value)
                if field.init
            }
            return {"class": class_name(type(value)), **values}
        case tuple() | list():
            return [to_json(item, path, name) for item in value]
        case Path():
            return path(value)
        case str() | int() | float() | None:
            return value
    raise UsageError(
        f"{name[1:]} is {'a function' if callable(value) else shown(value)}, which "
        f"config.json cannot hold: use numbers, text, paths, tuples of them, and "
        f"subclasses of hfdist.checks.Settings; schedules are for loops of your own"
    )


def from_json(tree: Any) -> Config:
    """The config of a tree that to_json made.

    Raises UsageError for any other tree. It runs nobody's code: a class is one of
    hfdist's own, or one that this process has imported already.
    """
    try:
        config = _built(tree)
    except RecursionError:
        raise UsageError("its config is nested too deep for a config") from None
    if not isinstance(config, Config):
        raise UsageError(f"its config is no {class_name(Config)}: put config.json back")
    return config


def _built(value: Any) -> Any:
    """An object for each object of JSON, and a tuple for each list."""
    if isinstance(value, list):
        return tuple(map(_built, value))
    if not isinstance(value, dict):
        return value
    values = {name: _built(item) for name, item in value.items() if name != "class"}
    cls = _defined(value.get("class"))
    try:
        return cls(**values)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # other fields, or a user's own checks
        raise UsageError(
            f"{cls.__name__} cannot be made from config.json ({told(error)}): put the "
            f"file back, or use the version that wrote it, of hfdist or of your class"
        ) from error


def _defined(name: Any) -> type[Settings]:
    """The class of settings of this name. Raises UsageError if there is none.

    Nothing is imported to find it but modules of hfdist that are for such classes.
    """
    if not isinstance(name, str):
        raise UsageError("an object of its config has no class: put config.json back")
    module, _, qualname = name.partition(":")
    if OWN_MODULE.fullmatch(module):
        try:
            importlib.import_module(module)
        except Exception as error:
            raise UsageError(
                f"module {module} of class {qualname} cannot be imported "
                f"({told(error)}): mend it, or put it back"
            ) from error
    if name not in Settings.defined:
        raise UsageError(
            f"class {qualname} of module {module} is neither hfdist's nor imported by "
            f"this command's config: if it is yours, `hfdist evaluate RUN_DIR --config "
            f"CONFIG.py` with the run's config file"
        )
    if inspect.isabstract(Settings.defined[name]):
        raise UsageError(f"class {name} is of no object: put config.json back")
    return Settings.defined[name]
