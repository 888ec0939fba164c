"""What `tools/reproduce.py` makes of the runs: comparison, tables, figures, words."""
