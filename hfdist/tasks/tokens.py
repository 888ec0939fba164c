"""Prediction of the next token of files of tokens, which may be larger than memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from hfdist.checks import Whole
from hfdist.errors import UsageError
from hfdist.tasks.next_token import NextToken, Windows

CHUNK = 2**24  # tokens that are looked at at once
REMEDY = (
    "give --data.dir a folder with --data.train and --data.validation, files of tokens"
)


@dataclass(frozen=True, kw_only=True)
class Tokens(NextToken):
    """The tokens of two files, one to train and one to validate, as nanoGPT has them.

    A file is a .npy, or whole numbers of the dtype one after the other, least byte
    first. It is mapped, not read into memory; but each run looks at all of its tokens
    once, whether they are of the vocabulary.
    """

    dir: Path
    """Folder of the two files."""
    train: Path = Path("train.bin")
    """The file to train on: its name in the folder, or a path from the root."""
    validation: Path = Path("val.bin")
    """The file to validate on, likewise."""
    dtype: Literal["uint16", "uint32"] = "uint16"
    """The numbers of a file that is no .npy, which says so itself."""
    vocabulary: Annotated[int, Whole(2)]
    """Number of tokens that there are, or more; they run from 0 to vocabulary - 1."""

    def examples(self, split):
        """tokens (n, context + 1), as the file has them."""
        path = self.dir / {"train": self.train, "test": self.validation}[split]
        tokens = _mapped(path, self.dtype)
        windows = Windows(tokens, self.context)
        if len(windows) < 2:
            raise UsageError(
                f"{path} has {len(tokens):,} tokens, which are no two windows of "
                f"{self.context} + 1: give a file of at least "
                f"{2 * self.context + 1:,}, or a smaller --data.context"
            )
        self._check_tokens(path, tokens)
        return windows

    def vocabulary_size(self):
        return self.vocabulary

    def _check_tokens(self, path: Path, tokens: np.ndarray) -> None:
        """Raise UsageError for a token that is not of the vocabulary."""
        for start in range(0, len(tokens), CHUNK):
            chunk = tokens[start : start + CHUNK]
            least, most = int(chunk.min()), int(chunk.max())
            if least < 0:
                raise UsageError(
                    f"{path}: token {least} is negative: number the tokens from 0"
                )
            if most >= self.vocabulary:
                raise UsageError(
                    f"{path}: token {most} is outside 0 … {self.vocabulary - 1}: give "
                    f"--data.vocabulary {most + 1} or more, if it is right, or "
                    f"--data.dtype as the file was written"
                )


def _mapped(path: Path, dtype: str) -> np.ndarray:
    """The tokens of a file (n,), which stay there until they are looked at.

    Raises UsageError for a file that cannot be read, or holds something else.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise UsageError(f"{path} is no file: {REMEDY}")
        if path.suffix == ".npy":
            return _checked(path, np.lib.format.open_memmap(path, mode="r"))
        kind = np.dtype(dtype).newbyteorder("<")
        size = path.stat().st_size
        if size == 0:
            raise UsageError(f"{path} is empty: {REMEDY}")
        if size % kind.itemsize:
            raise UsageError(
                f"{path} has {size:,} bytes, which are no whole number of {dtype}, "
                f"{kind.itemsize} bytes each: it is truncated, or of another "
                f"--data.dtype"
            )
        return np.memmap(path, kind, "r")
    except (OSError, EOFError, OverflowError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be read ({why}): {REMEDY}") from None


def _checked(path: Path, array: np.ndarray) -> np.ndarray:
    """Raise UsageError for what are no whole numbers in one row."""
    if array.ndim == 1 and array.dtype.kind in "iu" and array.dtype.isnative:
        return array
    raise UsageError(
        f"{path} has {array.dtype.str} of shape {array.shape}: give whole numbers in "
        f"one row, by numpy.save(path, tokens.ravel().astype('uint16'))"
    )
