"""Preconditioners learnt from samples of G, one a file: Probes -> Preconditioner."""
