"""What a model's precision means for the machine that it runs on, and what to do about activations that overflow it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
_ALIASES = {"half": "float16", "float": "float32"}  # vLLM's
# Without one of these a CPU converts every number of a matrix product on its way (x86 and Arm, as Linux names them).
_INSTRUCTIONS = {
    "bfloat16": ("avx512_bf16", "amx_bf16", "bf16"),
    "float16": ("avx512_fp16", "amx_fp16", "asimdhp"),
}
_WIDER = {"float16": "bfloat16 or float32", "bfloat16": "float32"}


def name_of(dtype: Any) -> str:
    """``float32`` of a torch.dtype, of its name, or of vLLM's alias for it."""
    name = str(dtype).removeprefix("torch.")
    return _ALIASES.get(name, name)


def slow_on_cpu(dtype: str) -> str | None:
    """Why a model in ``dtype`` may be many times slower on this CPU than in float32, and the remedy; else None."""
    wanted = _INSTRUCTIONS.get(dtype)
    found = _instructions(CPUINFO)
    if wanted is None or not found or found & {*wanted}:
        return None
    return (
        f"this CPU has no instructions for {dtype} ({', '.join(wanted)}), so an answer may take many times as long as "
        "in float32: fit a probe in float32 (hguard fit --dtype float32) and serve that one"
    )


def overflow(dtype: str) -> str:
    """What to do about activations that are not finite in ``dtype``."""
    wider = _WIDER.get(dtype)
    if wider is None:
        return "the checkpoint may be damaged: compare its files with their source"
    return f"fit and serve this model in {wider} (hguard fit --dtype {wider.split()[0]}, with another --out)"


def _instructions(cpuinfo: Path) -> set[str]:
    """What Linux says that the first of the CPUs can do; nothing where it does not say."""
    if not cpuinfo.is_file():
        return set()
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()
