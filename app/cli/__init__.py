"""``hguard``: one file for each command."""
