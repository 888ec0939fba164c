"""Tables as columns of numbers by name: from CSV and NPZ files, and scikit-learn's."""

import csv
import difflib
import inspect
import itertools
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from hfdist.checks import check_choice
from hfdist.errors import UsageError

Columns = dict[str, np.ndarray]  # (n,) each: float64, or text as a CSV file has it

DELIMITERS = ",;\t"
SCIKIT = "sklearn:"
SHIPPED = ("diabetes", "linnerud")  # scikit-learn's own sets for regression


def read(path: Path) -> Columns:
    """The columns of `path`: a CSV file, an NPZ file, or "sklearn:NAME".

    Raises UsageError for what cannot be read or is no table.
    """
    if str(path).startswith(SCIKIT):
        return _scikit(str(path).removeprefix(SCIKIT))
    try:
        columns = _npz(path) if path.suffix == ".npz" else _csv(path)
    except (OSError, EOFError, ValueError, csv.Error, zipfile.BadZipFile) as error:
        if isinstance(error, UsageError):
            raise
        why = getattr(error, "strerror", None) or error
        raise UsageError(
            f"table {path} cannot be read ({why}): give --data.file a CSV file in "
            f"UTF-8 with a row of names above, or an NPZ file of numbers"
        ) from None
    if not columns:
        raise UsageError(f"table {path} has no columns: give --data.file one with some")
    return columns


def chosen(path: Path, columns: Columns, names: Iterable[str]) -> list[str]:
    """The columns that names stand for; that of a matrix stands for all of its own.

    Raises UsageError for a name that is none.
    """
    found = []
    for name in names:
        own = [c for c in columns if c == name or c.startswith(f"{name}[")]
        if not own:
            near = difflib.get_close_matches(name, columns, n=1)
            hint = f" (perhaps {near[0]!r})" if near else ""
            raise UsageError(
                f"table {path} has no column {name!r}{hint}: it has "
                f"{', '.join(columns)}"
            )
        found += own
    return found


def matrix(path: Path, columns: Columns, names: Sequence[str]) -> np.ndarray:
    """Columns side by side, (n, len(names)) float64.

    Raises UsageError, naming row and column, for a cell that is no finite number.
    """
    return np.stack([_numbers(path, name, columns[name]) for name in names], 1)


def _numbers(path: Path, name: str, cells: np.ndarray) -> np.ndarray:
    try:
        numbers = cells.astype(np.float64)
    except ValueError:
        numbers = np.array([_number(cell) for cell in cells])
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if not wrong.size:
        return numbers
    row = wrong[0]
    cell = str(cells[row]).strip()
    if not cell or cell.lower() == "nan":
        raise UsageError(
            f"table {path}: column {name!r} is {'NaN' if cell else 'empty'} in row "
            f"{row + 1}, and in {wrong.size} row(s) in all is no number: fill or drop "
            f"them, or leave the column out of --data.inputs"
        )
    raise UsageError(
        f"table {path}: column {name!r} has {cell!r} in row {row + 1}, which is no "
        f"finite number: turn it into numbers (with a decimal point), or leave the "
        f"column out of --data.inputs"
    )


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return np.nan


def _csv(path: Path) -> Columns:
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.readline()
        delimiter = max(DELIMITERS, key=head.count)
        lines = csv.reader(itertools.chain([head], file), delimiter=delimiter)
        names, *rows = [cells for cells in lines if cells] or [[]]
    names = [name.strip() for name in names]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UsageError(
            f"table {path} has more than one column {repeated[0]!r}: give each a name "
            f"of its own, in the first row"
        )
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise UsageError(
                f"table {path}: row {number} has {len(row)} cells, and the row of "
                f"names {len(names)}: give every row as many"
            )
    if names and not rows:
        raise UsageError(f"table {path} has no rows below the names: give it some")
    return dict(zip(names, np.array(rows, dtype=str).T, strict=True))


def _npz(path: Path) -> Columns:
    with np.load(path, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    columns: Columns = {}
    for name, array in found.items():
        if array.ndim not in (1, 2) or array.dtype.kind not in "biuf":
            raise UsageError(
                f"table {path}: array {name!r} is {array.dtype} of shape "
                f"{array.shape}: use real numbers, a row for each example"
            )
        first = next(iter(found.values()))
        if len(array) != len(first):
            raise UsageError(
                f"table {path}: array {name!r} has {len(array)} rows, and "
                f"{next(iter(found))!r} {len(first)}: they do not belong together"
            )
        parts = {f"{name}[{i}]": part for i, part in enumerate(array.T)}
        columns |= parts if array.ndim == 2 else {name: array}
    return columns


def _scikit(name: str) -> Columns:
    check_choice(f"--data.file {SCIKIT}NAME", name, SHIPPED)
    try:
        from sklearn import datasets
    except ImportError:
        raise UsageError(
            f"--data.file {SCIKIT}{name} needs scikit-learn: "
            f"pip install 'hfdist[table]'"
        ) from None
    load = getattr(datasets, f"load_{name}")
    scaled = "scaled" in inspect.signature(load).parameters
    data = load(**({"scaled": False} if scaled else {}))
    targets = data.target.reshape(len(data.target), -1)
    names = [*data.feature_names, *data.get("target_names", ["target"])]
    return dict(zip(names, np.hstack([data.data, targets]).T, strict=True))
