"""What the tools share: command line, what runs recorded, batches, the machine."""
