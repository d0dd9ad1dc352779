"""What ``hguard`` runs. Its imports take a second or two, in which Ctrl-C would print where they were."""

from __future__ import annotations

import sys


def main() -> int:
    """The exit status; 130 after Ctrl-C."""
    try:
        from app.cli.main import main as command

        return command()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
