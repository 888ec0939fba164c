"""Meeting the other processes of a run."""
