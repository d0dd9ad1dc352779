"""The log line of a request."""

from __future__ import annotations

import json
import logging

from guard.engine.context import RequestContext

log = logging.getLogger("hguard")


def log_line(route: str, call: RequestContext, seconds: float) -> None:
    """One structured line for each request, whose caller waited for the answer or left before."""
    verdicts = [call.verdicts[index] for index in sorted(call.verdicts)]
    line = {
        "event": "left" if call.left else "answered",
        "route": route,
        "mode": call.policy.mode.value,
        "scale": call.policy.scale,
        "risks": [None if v.risk is None else round(v.risk, 4) for v in verdicts],
        "actions": [v.decision.action.value for v in verdicts],
        "reasons": sorted({v.reason.value for v in verdicts if v.reason is not None}),
        "prompt_refused": any(v.prompt_refused for v in verdicts),
        "retried": any(v.first_risk is not None for v in verdicts),
        "tokens": sum(len(v.token_ids) for v in verdicts),
        "seconds": round(seconds, 4),
        "guard_seconds": round(call.overhead_seconds, 6),
    }
    log.info(json.dumps(line))
