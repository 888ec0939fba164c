"""Tasks: what is learnt, one a file."""
