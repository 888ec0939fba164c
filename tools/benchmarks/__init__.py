"""What `tools/bench.py` measures, a benchmark a file."""
