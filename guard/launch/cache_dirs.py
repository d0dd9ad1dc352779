"""Where an engine writes: checked before anything of it is imported, which is when torch makes its cache."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from guard.errors import UnsupportedError

_TEMPORARY = "give it one, as with --tmpfs /tmp in a container with a read-only root, or set TMPDIR"


def require_writable(distribution: str) -> None:
    """Raise UnsupportedError for a folder that the engine needs and cannot write to."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise UnsupportedError(f"there is no folder for temporary files: {_TEMPORARY}") from None
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folders = {"VLLM_CACHE_ROOT": os.environ.get("VLLM_CACHE_ROOT") or f"{caches}/vllm"}
    if inductor := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):  # without it in the temporary folder
        folders["TORCHINDUCTOR_CACHE_DIR"] = inductor
    if distribution == "vllm":
        folders["TRITON_CACHE_DIR"] = os.environ.get("TRITON_CACHE_DIR") or "~/.triton/cache"
    for variable, folder in folders.items():
        # As vLLM does it: a user without a home gets a folder called ~.
        _require(Path(os.path.expanduser(folder)), variable)  # noqa: PTH111


def _require(folder: Path, variable: str) -> None:
    """Make the folder unless it is there, and try a file in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UnsupportedError(
            f"the cache {folder} cannot be written ({error.strerror}): let user {os.getuid()} write there, or set "
            f"{variable} to a folder where it may"
        ) from None
