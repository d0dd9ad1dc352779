"""What every result says of where it was measured, and the file that it goes to."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import psutil

from guard.versions import engine_version


def setting() -> dict[str, str]:
    """The engine and the machine."""
    distribution, version = engine_version()
    return {"engine": f"{distribution} {version}", "machine": machine()}


def machine() -> str:
    """The processor, or the GPU where there is one, and how many cores."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return f"{name}, {psutil.cpu_count()} cores"


def processor() -> str:
    """The processor's name."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def write(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
