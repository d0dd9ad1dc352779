"""How each API asks, and how a verdict looks in its answers."""
