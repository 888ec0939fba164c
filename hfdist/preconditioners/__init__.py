"""Preconditioners learnt from probes, one a file: Probes -> Preconditioner."""
