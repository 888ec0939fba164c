"""What `tools/comms.py` knows: the collectives of a program, what they cost."""
