"""Solvers of C x = b from products v -> C v; one a file."""
