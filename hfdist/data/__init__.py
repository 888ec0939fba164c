"""Data: files -> arrays in memory -> a Grain pipeline of global batches."""
