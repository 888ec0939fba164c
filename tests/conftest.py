"""Four virtual CPU devices and float64 for every test; set before JAX starts."""

import os
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_X64"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its threads wait on each other's core
# The tests compile a thousand small programs and run each once.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):  # later ones have no other emitters
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import hfdist

hfdist.make_mesh(4)
