"""What ``make serve`` does not bring, and fits need."""

from __future__ import annotations

from importlib.util import find_spec

from guard.errors import FitError

_NEEDED = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}


def require_extra(command: str) -> None:
    """Raise FitError with the line that installs the extra ``fit``, when what it brings is not there."""
    missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise FitError(
            f"hguard {command} needs {' and '.join(missing)}, which the extra fit brings: "
            ".venv/bin/pip install -e '.[fit]'"
        )
