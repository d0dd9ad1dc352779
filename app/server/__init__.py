"""The server composed and run: its routes, its life, what it says of itself."""
