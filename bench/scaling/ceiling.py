"""What one API process carries, from its recorded CPU time a request, and how many an engine needs.

A process of Python runs on one core. Its ceiling is the load at which that core has no time left: a server that is to
answer in time stays well below it.
"""

from __future__ import annotations

import math
from typing import Any

from app.settings import Settings
from bench.scaling import recorded, roofline

CLIENTS = (64, 256)
KINDS = {"whole": recorded.WHOLE, "streamed": recorded.STREAMED, "streamed, logprobs": f"{recorded.STREAMED}, logprobs"}
LONGER = 256  # tokens of an answer that no run has recorded
STREAMS = 100_000
STEPS = (0.010, 0.020, 0.040)  # seconds
DESCRIPTORS = 524_288  # systemd's hard limit of a process (systemd-system.conf); the server raises its soft one to it


def default(setting: str) -> Any:
    return Settings.model_fields[setting].default


def carried() -> list[dict[str, Any]]:
    """Requests and tokens that one process carries a second, plain and guarded, as recorded."""
    result = recorded.read(recorded.API)
    output, found = result["load"]["output"], []
    for clients in CLIENTS:
        for kind, metric in KINDS.items():
            row: dict[str, Any] = {"clients": clients, "kind": kind}
            for side in ("plain", "guarded"):
                spent = recorded.values(result, "score", metric, side)[clients]
                row[side] = {"ms": spent, "requests": 1e3 / spent, "tokens": output * 1e3 / spent}
            found.append(row)
    return found


def bounds(side: str) -> tuple[float, float]:
    """Tokens a second of streams of LONGER tokens, at most clients: where all of a recorded request's time grows with
    its tokens, and where only its frames' does. The truth lies between."""
    result = recorded.read(recorded.API)
    output, clients = result["load"]["output"], CLIENTS[-1]
    whole, streamed = (
        recorded.values(result, "score", metric, side)[clients] for metric in (recorded.WHOLE, recorded.STREAMED)
    )
    longest = whole + (streamed - whole) * LONGER / output
    return output * 1e3 / streamed, LONGER * 1e3 / longest


def needed() -> list[dict[str, Any]]:
    """API processes that keep up with an engine on paper, by shape and batch, for streams: as recorded, and LONGER."""
    found = []
    shapes = {shape.name for shape in roofline.SHAPES if not shape.top}  # what is read beside changes no tokens
    for step in roofline.steps():
        if step["batch"] == 1 or step["shape"] not in shapes or not step["fits"]:
            continue
        tokens = step["tokens_per_second"]
        row = {"shape": step["shape"], "batch": step["batch"], "tokens_per_second": tokens}
        for side in ("plain", "guarded"):
            row[side] = [math.ceil(tokens / bound) for bound in bounds(side)]
        found.append(row)
    return found


def at_once() -> dict[str, Any]:
    """Replicas that 100,000 streams at once take, by what limits one: its settings, and its one API process at a step
    time, as each step has it write a frame for each stream."""
    cost, slots, callers = recorded.api_cost(CLIENTS[-1]), default("slots"), default("max_concurrent_requests")
    limits: dict[str, float] = {"score slots": slots, "requests of one key": callers, "descriptors": DESCRIPTORS}
    limits |= {f"API process, steps of {1e3 * step:g} ms": step / cost.frame for step in STEPS}
    return {
        name: {"streams": math.floor(limit), "replicas": math.ceil(STREAMS / limit)} for name, limit in limits.items()
    }


def drained() -> list[dict[str, Any]]:
    """By step time, the longest answer that the default drain lets end, and the drain that --max-tokens takes."""
    longest, seconds = default("max_tokens"), default("drain_seconds")
    return [{"step": step, "tokens": round(seconds / step), "seconds": round(longest * step, 1)} for step in STEPS]


def summary() -> dict[str, Any]:
    result = recorded.read(recorded.API)
    return {
        "machine": result["machine"],
        "output": result["load"]["output"],
        "longer": LONGER,
        "streams": STREAMS,
        "carried": carried(),
        "longer_tokens": {side: bounds(side) for side in ("plain", "guarded")},
        "needed": needed(),
        "at_once": at_once(),
        "drain_seconds": default("drain_seconds"),
        "max_tokens": default("max_tokens"),
        "drained": drained(),
    }
