"""What the simulation takes from ``bench/results``: how long a step takes, and the API process's work on a request."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parents[1] / "results"
ENGINE, API = "cpu-atlas", "api-cpu-atlas"
WHOLE = "API process, CPU ms/request"
STREAMED = f"{WHOLE}, streamed"


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def values(result: Any, mode: str, metric: str, side: str = "guarded") -> dict[int, float]:
    """A metric of one mode, by number of clients."""
    return {row["concurrency"]: row[side] for row in result["rows"] if (row["mode"], row["metric"]) == (mode, metric)}


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step: ``base``, ``each`` for each row that decodes, ``prompt`` for each token of prompts."""

    base: float
    each: float
    prompt: float

    def of(self, rows: int, prompts: int) -> float:
        return self.base + self.each * rows + self.prompt * prompts


@dataclass(frozen=True, slots=True)
class ApiCost:
    """CPU seconds of an API process: of a request, of each token's frame in a stream, of a refusal."""

    request: float
    frame: float
    refusal: float


def step_time() -> StepTime:
    """Of atlas, guarded with all that ``hguard serve`` measures: a least-squares line through the inter-token latencies
    at 1, 8 and 64 clients; a prompt's tokens at the rate at which the engine takes given text at most."""
    result = read(ENGINE)
    latency = values(result, "score+entropy", "inter-token latency, ms")
    each, base = np.polyfit(list(latency), [1e-3 * one for one in latency.values()], 1)
    return StepTime(float(base), float(each), 1 / max(values(result, "risk", "given tokens/s").values()))


def api_cost(clients: int) -> ApiCost:
    """Guarded, in score mode, at so many clients.

    What a stream takes more than a whole answer is its frames', and all else the request's, whatever its length: for
    answers longer than the recorded ones that is less than they really take, so what is found to break does break. A
    refusal: as ``app/ingress/admission.py`` says.
    """
    result = read(API)
    whole, streamed = (values(result, "score", metric)[clients] for metric in (WHOLE, STREAMED))
    return ApiCost(1e-3 * whole, 1e-3 * (streamed - whole) / result["load"]["output"], 0.0005)


def summary() -> dict[str, Any]:
    """For the file: what was taken, and where it was recorded."""
    engine, api = read(ENGINE), read(API)
    return {
        "step": {"from": ENGINE, "machine": engine["machine"], **asdict(step_time())},
        "api": {
            "from": API,
            "machine": api["machine"],
            "output": api["load"]["output"],
            **{str(clients): asdict(api_cost(clients)) for clients in (64, 256)},
        },
    }
