"""How far to go along what was solved for, one rule a file: proposal -> Step."""
