"""The curvatures C of a batch, one a file: (problem, params, batch) -> Sums."""
