"""The parts of `tools/gpu.py`, a file each, and what runs and records them."""
