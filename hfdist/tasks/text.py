"""Prediction of the next character of a text."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from hfdist.errors import UsageError
from hfdist.tasks.files import opened
from hfdist.tasks.next_token import NextToken, Windows

TINYSHAKESPEARE = Path(__file__).parent / "tinyshakespeare" / "input.txt.gz"
# SHA-256 of the shipped text after decompression.
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
CHARACTERS = 0x110000  # code points of Unicode


@dataclass(frozen=True, kw_only=True)
class Text(NextToken):
    """The characters of a UTF-8 file, plain or .gz, each predicted from those before.

    The first 90 % are to train; the rest, the test split, is to validate. The
    vocabulary is the file's distinct characters, in their order in Unicode.
    """

    unit: ClassVar[str] = "character"

    file: Path | None = None
    """The text; without it, the plays of Shakespeare that hfdist ships
    (tinyshakespeare: 1,115,394 characters, 65 distinct)."""

    def examples(self, split):
        """tokens (n, context + 1), each a character's place in the vocabulary."""
        tokens, _ = self._tokens()
        cut = len(tokens) * 9 // 10
        windows = {
            "train": Windows(tokens[:cut], self.context),
            "test": Windows(tokens[cut:], self.context),
        }
        if any(len(one) < 2 for one in windows.values()):
            raise UsageError(
                f"{self._path()} has {len(tokens):,} characters, of which the last "
                f"tenth is no two windows of {self.context} + 1: give --data.file one "
                f"of at least {20 * self.context + 1:,}, or a smaller --data.context"
            )
        return windows[split]

    def vocabulary_size(self):
        _, vocabulary = self._tokens()
        return len(vocabulary)

    def _path(self) -> Path:
        return self.file or TINYSHAKESPEARE

    def _tokens(self) -> tuple[np.ndarray, str]:
        """The text in places of the vocabulary, in as few bytes as hold them."""
        codes = np.frombuffer(self._text().encode("utf-32-le"), np.uint32)
        present = np.zeros(CHARACTERS, bool)
        present[codes] = True
        vocabulary = np.flatnonzero(present)
        places = np.cumsum(present) - 1
        tokens = places.astype(np.min_scalar_type(len(vocabulary) - 1))[codes]
        return tokens, "".join(map(chr, vocabulary))

    def _text(self) -> str:
        path = self._path()
        remedy = "give --data.file a text" if self.file else "reinstall hfdist"
        with opened(path, remedy) as file:
            raw = file.read()
        if not self.file and hashlib.sha256(raw).hexdigest() != SHA256:
            raise UsageError(f"{path} is damaged (wrong SHA-256): reinstall hfdist")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{path} is no UTF-8 text: {error.reason} at byte {error.start:,}; "
                f"give --data.file one, by `iconv -t utf-8` of this"
            ) from None
        if not text:
            raise UsageError(f"{path} is empty: give --data.file a text")
        return text
