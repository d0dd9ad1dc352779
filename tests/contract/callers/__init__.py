"""The clients: each module calls one of them in the ways that programs do."""
