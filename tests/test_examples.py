"""Examples by index, of a user's own: right, or one message."""

import grain
import numpy as np
import pytest

from hfdist.errors import UsageError
from hfdist.tasks.examples import Arrays, Examples, readable
from hfdist.tasks.pipeline import GlobalBatches

ROWS = 7


def rows(n=ROWS):
    rng = np.random.default_rng(0)
    return {"inputs": rng.normal(size=(n, 3)), "targets": rng.normal(size=(n, 1))}


def elements(function):
    return grain.MapDataset.range(ROWS).map(function)


def element(place):
    return {"inputs": np.arange(3.0) + place, "targets": np.float64([place])}


class Gathers(Examples):
    """What a gather of a user's own makes of places."""

    def __init__(self, gather):
        self.gather = gather

    def __len__(self):
        return ROWS

    def gather(self, places):
        raise NotImplementedError


SOURCES = {
    "too few rows": (
        lambda: Arrays({**rows(), "targets": rows(5)["targets"]}),
        r"entries of the examples have \{'inputs': 7, 'targets': 5\} rows",
    ),
    "too many rows": (
        lambda: Arrays({**rows(), "targets": rows(9)["targets"]}),
        r"'targets': 9\} rows: give each the same number",
    ),
    "no entries": (lambda: Arrays({}), "have no rows"),
    "a list": (
        lambda: Arrays({"inputs": rows()["inputs"].tolist()}),
        "entry 'inputs' of the examples is no array .* by numpy.asarray",
    ),
    "a number": (lambda: Arrays({**rows(), "factor": 3.0}), "entry 'factor'"),
    "text": (
        lambda: Arrays({**rows(), "names": np.array(list("abcdefg"))}),
        "entry 'names' of the examples is of <U1, which JAX has no arrays of",
    ),
    "bytes in another order": (
        lambda: Arrays({"inputs": np.ones((ROWS, 3), ">f4")}),
        "is of >f4, which JAX has no arrays of: turn it into numbers, by astype",
    ),
    "a column of weights": (
        lambda: Arrays({**rows(), "weights": np.ones((ROWS, 1))}),
        r"an example has weights of shape \(1,\): give it one number",
    ),
    "elements without names": (
        lambda: elements(lambda place: np.arange(3.0)),
        "an example of the task is array.*: make it a dictionary of numbers and arrays",
    ),
    "a number for a name": (
        lambda: Arrays({1: np.ones(3), "a": np.ones(3)}),
        "by name",
    ),
    "a gather that forgets a dimension": (
        lambda: Gathers(lambda places: {"inputs": rows()["inputs"][places.ravel()]}),
        r"at places of shape \(1, 2\) have 'inputs' of shape \(2, 3\): gather must",
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_examples_that_cannot_be_batches_are_refused(name):
    make, message = SOURCES[name]
    with pytest.raises(UsageError, match=message):
        readable(make())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda e: e | {"targets": np.ones(2)}, r"'targets': 'float64\[2\]'\}, but el"),
        (lambda e: e | {"inputs": np.arange(3)}, r"'inputs': 'int64\[3\]'"),
        (lambda e: {"inputs": e["inputs"]}, "give all the same entries, shapes and"),
        (lambda e: None, "element 6 of the task's data set is None, but element 0"),
    ],
)
def test_an_element_unlike_the_first_is_named(spoil, message):
    def uneven(place):
        return spoil(element(place)) if place == 6 else element(place)

    source = GlobalBatches(readable(elements(uneven)), 5, None)
    assert source.chunk(0, 1)["inputs"].shape == (1, 5, 3)
    with pytest.raises(UsageError, match=message):
        source.chunk(1, 1)
