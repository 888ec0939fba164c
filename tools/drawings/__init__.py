"""How the tools draw."""
