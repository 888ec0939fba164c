"""What the tools share: the command line, what runs recorded, batches to measure."""
