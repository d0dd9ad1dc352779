"""What may be written to a terminal."""

from __future__ import annotations

import os
import sys


def printable(text: str) -> str:
    """Without control characters, which a model or a stranger's file could steer a terminal with."""
    return "".join(one if one.isprintable() else " " for one in text)


def takes_colors() -> bool:
    """Whether standard output is a terminal with colours, and nobody has asked for none (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
