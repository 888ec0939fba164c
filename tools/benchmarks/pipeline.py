"""What reading batches costs beside the steps that they feed."""

import gzip
import statistics
import sys
import tempfile
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path

import grain

import hfdist
from benchmarks.measurement import Measurement, seconds_each
from hfdist.runs import metrics
from hfdist.runs.config import Config
from hfdist.runs.spans import Spans
from hfdist.runs.train import train
from hfdist.tasks.examples import Examples, readable
from hfdist.tasks.idx import IDX, MNIST
from hfdist.tasks.pipeline import GlobalBatches, chunks

BATCH, EPOCHS = 64, 5
METHODS = {"SGD": hfdist.SGD(learning_rate=0.1), "HF-GN": hfdist.HessianFree()}


def pipeline() -> list[Measurement]:
    """MNIST at batch 64 by each kind of examples; the paper's network, 0.1 ms a step.

    The host reads a chunk while the devices compute the one before, on cores of their
    own or, as here, on the same.
    """
    with tempfile.TemporaryDirectory() as folder:
        for path in MNIST.iterdir():
            plain = Path(folder) / path.with_suffix("").name
            plain.write_bytes(gzip.decompress(path.read_bytes()))
        tasks = {"in memory": IDX(), "mapped file": IDX(dir=Path(folder))}
        reading = {name: _reading(t.examples("train")) for name, t in tasks.items()}
    steps = {name: _step(method) for name, method in METHODS.items()}
    alone = _reading(readable(_one_by_one()))
    return [
        *(Measurement(f"{n}: step", 1e6 * s, None, "µs") for n, s in steps.items()),
        *(
            Measurement(f"{kind}, {name}: reading / step", read / step, 0.5, "ratio")
            for kind, read in reading.items()
            for name, step in steps.items()
        ),
        Measurement("one by one: reading", 1e6 * alone, None, "µs/batch"),
    ]


def _one_by_one() -> grain.MapDataset:
    """The same images as elements of a Grain data set."""
    entries = IDX().examples("train").entries
    dataset = grain.MapDataset.range(len(entries["labels"]))
    return dataset.map(lambda i: {name: a[i] for name, a in entries.items()})


def _reading(examples: Examples) -> float:
    """Seconds a batch, median over epochs."""
    source = GlobalBatches(examples, BATCH, seed=0)
    spans = Spans(0, source.per_epoch, source.per_epoch, source.most(67))

    def epoch():
        for chunk in chunks(source, spans):
            del chunk

    seconds_each(epoch, repeats=1)
    return statistics.median(seconds_each(epoch, repeats=EPOCHS)) / source.per_epoch


def _step(method: hfdist.Method) -> float:
    """Seconds of a step of the trainer, median over epochs."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        train(Config(method=method, epochs=EPOCHS, run_dir=Path(folder)))
        lines = metrics.read(Path(folder))
    ends = [line for line in lines if line["split"] == "test"]
    marks = [(0, 0.0), *((line["step"], line["seconds"]) for line in ends)]
    return statistics.median((t - s) / (k - j) for (j, s), (k, t) in pairwise(marks))
