"""What ``hguard`` runs. Its imports take a second or two, in which Ctrl-C would print where they were.

The processes of an engine import this module, too, as the main one of what spawned them (a ``__main__.py`` they would
not).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import guard.launch.no_triton  # noqa: F401 - before vLLM, in those processes


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status; 130 after Ctrl-C."""
    try:
        from app.cli.main import main as command

        return command(argv)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
