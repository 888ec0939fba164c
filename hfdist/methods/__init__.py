"""Optimisation methods, one a file."""
