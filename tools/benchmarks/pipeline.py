"""What reading batches costs beside the steps that they feed."""

import gzip
import statistics
import tempfile
from pathlib import Path

import grain

import hfdist
from benchmarks.measurement import Measurement, epoch_seconds, seconds_each
from hfdist.runs.spans import Spans
from hfdist.tasks.examples import Examples, readable
from hfdist.tasks.idx import IDX, MNIST
from hfdist.tasks.pipeline import GlobalBatches, chunks

BATCH, EPOCHS, STEPS = 64, 5, 938  # steps an epoch
METHODS = {
    "SGD": hfdist.SGD(learning_rate=0.1),
    "HF-GN": hfdist.HessianFree(damping=4.0),
}


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
    steps = {
        name: statistics.median(epoch_seconds(method, EPOCHS)) / STEPS
        for name, method in METHODS.items()
    }
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
    spans = Spans(0, source.per_epoch, source.per_epoch, source.most(67, BATCH))

    def epoch():
        for chunk in chunks(source, spans):
            del chunk

    seconds_each(epoch, repeats=1)
    return statistics.median(seconds_each(epoch, repeats=EPOCHS)) / source.per_epoch
