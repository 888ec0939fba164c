"""What a product, a step and the trainer cost, by the benchmarks of tools/bench.py.

Their limits count a CPU's operations: a small network on a GPU waits for launches. So
here they are shown and not judged.
"""

from benchmarks.measurement import AUTOENCODER, Measurement
from benchmarks.step import product_over_gradient, step_operations, trainer_overhead
from gpu_check.part import Row, Said, Work
from hfdist import SGD, HessianFree

SCAN = "bare scan"


def measure(work: Work) -> Said:
    """The benchmark `step`, row by row, and a step in gradients by the clock."""
    yield from _rows(product_over_gradient("784-10-10", (10,), 10, 64, 1.0))
    yield from _rows(step_operations("784-10-10", (10,), 64))
    if work.quick:
        return
    yield from _rows(product_over_gradient("784-128-10", (128,), 10, 64, 1.0))
    yield from _rows(product_over_gradient("autoencoder", AUTOENCODER, 784, 512, 4 / 3))
    scans = []
    for name, method in (
        ("SGD", SGD(learning_rate=0.1)),
        ("HF-GN", HessianFree(damping=4.0)),
    ):
        measured = trainer_overhead(name, method)
        scans.append(next(m.value for m in measured if SCAN in m.name))
        yield from _rows(measured)
    sgd, hf = scans
    yield from _rows([Measurement("HF-GN step / SGD step", hf / sgd, None, "ratio")])


def _rows(measurements: list[Measurement]) -> list[Row]:
    return [
        {"measured": m.name, "value": m.value, "limit": m.limit, "unit": m.unit}
        for m in measurements
    ]
