"""What is told of a finished request, and to whom: metrics, the log, and whatever else exports it.

An exporter is a class with ``observe``, and a place among those of ``app/server/app.py``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from guard.engine.context import RequestContext

log = logging.getLogger("hguard")


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request that has ended, whether its caller waited for the answer or left before.

    call: its policy and verdicts. seconds: from the first of our work on it to the last byte of the answer.
    """

    route: str
    call: RequestContext
    seconds: float


class Exporter(Protocol):
    """Takes the record of each request, on the event loop: what may wait belongs into a thread or a task."""

    def observe(self, record: RequestRecord) -> None: ...


class Exporters:
    """All of them. One that fails is logged, and neither the answer nor the others miss anything."""

    def __init__(self, exporters: Sequence[Exporter]) -> None:
        self._exporters = tuple(exporters)

    def observe(self, record: RequestRecord) -> None:
        for exporter in self._exporters:
            try:
                exporter.observe(record)
            except Exception:
                log.exception("%s failed on a request to %s", type(exporter).__name__, record.route)


class LogLine:
    """One structured line for each request that reached the guard; for ``/risk``, for each of its texts."""

    def observe(self, record: RequestRecord) -> None:
        call = record.call
        # What vLLM refuses, an unknown model, never reaches the engine.
        event = "left" if call.left else "answered" if call.choices else "refused"
        verdicts = [call.verdicts[index] for index in sorted(call.verdicts)]
        line: dict[str, Any] = {
            "event": event,
            "route": record.route,
            "mode": call.policy.mode.value,
            "scale": call.policy.scale,
            "risks": [None if v.risk is None else round(v.risk, 4) for v in verdicts],
            "actions": [v.decision.action.value for v in verdicts],
            "reasons": sorted({v.reason.value for v in verdicts if v.reason is not None}),
            "prompt_refused": any(v.prompt_refused for v in verdicts),
            "declined": sum(v.declined for v in verdicts),
            "out_of_domain": sum(v.in_domain is False for v in verdicts),
            "retried": any(v.first_risk is not None for v in verdicts),
            "tokens": sum(len(v.token_ids) for v in verdicts),
            "seconds": round(record.seconds, 4),
            "guard_seconds": round(call.overhead_seconds, 6),
        }
        if call.policy.explain:
            line["signals"] = [
                v.explanation and {k: round(x, 4) for k, x in v.explanation.signals.items()} for v in verdicts
            ]
        if call.policy.explain_neurons:
            line["neurons"] = [
                v.explanation and [[n.layer, n.neuron, round(n.adds, 4)] for n in v.explanation.neurons]
                for v in verdicts
            ]
        log.info(json.dumps(line))
