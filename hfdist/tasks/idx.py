"""Classification of images in IDX files, the format of MNIST and its relatives."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np

from hfdist import losses
from hfdist.checks import Whole
from hfdist.errors import UsageError
from hfdist.models.model import functional
from hfdist.problem import Problem
from hfdist.tasks.examples import Arrays
from hfdist.tasks.idx_format import Part, read, read_size, times
from hfdist.tasks.task import Split, Task

Loss = Literal["softmax_cross_entropy", "sigmoid_cross_entropy", "squared_error"]
STEMS: dict[Split, str] = {"train": "train", "test": "t10k"}

MNIST = Path(__file__).parent / "mnist"
# SHA-256 of the shipped files after decompression, the well-known values.
MNIST_SHA256 = {
    "train-images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataclass(frozen=True, kw_only=True)
class IDX(Task):
    """Images and labels in four IDX files, plain or .gz, named as MNIST's are.

    The pixels of a plain file are mapped, not read into memory, so that it may be
    larger than that.
    """

    dir: Path | None = None
    """Folder of train-images*, train-labels*, t10k-images*, t10k-labels*; without it,
    the MNIST files that hfdist ships."""
    classes: Annotated[int, Whole(2)] = 10
    """Number of classes; labels run from 0 to classes - 1."""
    loss: Loss = "softmax_cross_entropy"
    """Per-example loss of the outputs."""

    def examples(self, split):
        """inputs (n, pixels), which stay bytes, and labels (n,)."""
        images_path, images = self._read(split, "images")
        labels_path, labels = self._read(split, "labels")
        if len(images) != len(labels):
            raise UsageError(
                f"{images_path} has {len(images)} images but {labels_path} has "
                f"{len(labels)} labels: they do not belong together"
            )
        self._check_labels(labels_path, labels)
        self._check_size(split, images_path, images.shape[1:])
        inputs = images.reshape(len(images), -1)
        return Arrays({"inputs": inputs, "labels": labels.astype(np.int32)})

    def problem(self, model, seed):
        predict, params = functional(model.build(self.pixels(), self.outputs(), seed))
        return Problem(predict, getattr(losses, self.loss)), params

    def prepare(self, batch, dtype):
        """Pixels from bytes to [0, 1]."""
        return {**batch, "inputs": batch["inputs"].astype(dtype) / 255}

    def figures(self, outputs, batch):
        """The accuracy: 1 where the largest output is that of the label."""
        return {"accuracy": jnp.argmax(outputs, -1) == batch["labels"]}

    def outputs(self) -> int:
        """The number of outputs that a model is to have."""
        return self.classes

    def pixels(self) -> int:
        """The number of pixels of an image, by the header of either split."""
        folder = self.dir or MNIST
        names = [f"{stem}-images" for stem in STEMS.values()]
        # To evaluate, the test images will do; if neither is there, say so of these.
        name = next((name for name in names if _named(folder, name)), names[0])
        return math.prod(read_size(_find(folder, name)))

    def _read(self, split: Split, part: Part) -> tuple[Path, np.ndarray]:
        name = f"{STEMS[split]}-{part}"
        path = _find(self.dir or MNIST, name)
        if self.dir:
            return path, read(path, part)
        try:
            array = read(path, part)
        except UsageError as error:
            raise UsageError(f"{error}, or reinstall hfdist") from None
        if _digest(array) != MNIST_SHA256[name]:
            raise UsageError(f"{path} is damaged (wrong SHA-256): reinstall hfdist")
        return path, array

    def _check_labels(self, path: Path, labels: np.ndarray) -> None:
        least, most = int(labels.min()), int(labels.max())
        if least < 0:
            raise UsageError(
                f"{path}: label {least} is negative: number the classes from 0"
            )
        if most >= self.classes:
            raise UsageError(
                f"{path}: label {most} is outside 0 … {self.classes - 1}: give "
                f"--data.classes {most + 1} or more, if it is right"
            )

    def _check_size(self, split: Split, path: Path, size: tuple[int, ...]) -> None:
        """Raise UsageError if the other split, where it is there, has another size."""
        folder = self.dir or MNIST
        name = f"{STEMS['test' if split == 'train' else 'train']}-images"
        if not _named(folder, name):  # to evaluate, one split will do
            return
        other = _find(folder, name)
        if (other_size := read_size(other)) != size:
            raise UsageError(
                f"{path} has images of {times(size)} pixels but {other} of "
                f"{times(other_size)}: they do not belong together"
            )


def _named(folder: Path, name: str) -> list[Path]:
    """The files in a folder that go by a name; neither folders nor pipes."""
    try:
        paths = [path for path in folder.iterdir() if path.name.startswith(name)]
        return sorted(path for path in paths if "idx" in path.name and path.is_file())
    except OSError as error:
        raise UsageError(
            f"data folder {folder} cannot be read ({error.strerror}): give --data.dir "
            f"a folder of IDX files, such as {_such_as(name)}"
        ) from None


def _find(folder: Path, name: str) -> Path:
    found = _named(folder, name)
    if len(found) != 1:
        problem = f"holds {len(found)} files named" if found else "holds no file named"
        raise UsageError(
            f"data folder {folder} {problem} {name}*idx*: give --data.dir a folder "
            f"with one, such as {_such_as(name)}"
        )
    return found[0]


def _such_as(name: str) -> str:
    return f"{name}-idx{3 if 'images' in name else 1}-ubyte.gz"


def _digest(array: np.ndarray) -> str:
    """SHA-256 of a file of unsigned bytes, as it is after decompression."""
    sizes = np.array(array.shape, ">u4").tobytes()
    return hashlib.sha256(
        bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()
    ).hexdigest()
