"""The parts of `tools/bench.py race`: optimisers from one start, on one problem."""
