"""Curve fitting: least squares in float64, over data that need not fit into memory."""
