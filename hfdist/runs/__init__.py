"""A run: its config, loop, folder and checkpoints."""
