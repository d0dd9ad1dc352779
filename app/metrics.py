"""Prometheus metrics of the guard, beside vLLM's own in the same registry. Labels name no user, id or prompt."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from guard.engine.call import GuardCall, Verdict
from guard.policy import Action, Mode
from guard.probe.bundle import Bundle

OUTCOMES = ("pass", "flagged", "abstained", "not_scored", "off")  # mildest first, but for off
_RISK_BUCKETS = tuple(round(0.05 * i, 2) for i in range(1, 21))
_SECONDS_BUCKETS = (0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


class Metrics:
    """Made once per process; every series exists, at zero, before the first event."""

    def __init__(self, bundle: Bundle, model: str, registry: CollectorRegistry = REGISTRY) -> None:
        self._model = model
        self._requests = Counter(
            "hguard_requests_total",
            "Requests by outcome; one with several answers counts under its severest",
            ["model", "outcome"],
            registry=registry,
        )
        for outcome in OUTCOMES:
            self._requests.labels(model, outcome)
        self._risk = Histogram(
            "hguard_risk", "Calibrated risk of each scored answer", ["model"], buckets=_RISK_BUCKETS, registry=registry
        )
        self._risk.labels(model)
        self._tokens = Counter(
            "hguard_scored_tokens_total", "Answer tokens that were scored", ["model"], registry=registry
        )
        self._tokens.labels(model)
        self._overhead = Histogram(
            "hguard_overhead_seconds",
            "Time that the API process spent on reading scores and deciding, for each request",
            ["model"],
            buckets=_SECONDS_BUCKETS,
            registry=registry,
        )
        self._overhead.labels(model)
        info = Gauge(
            "hguard_probe_info",
            "The probe that guards the model; always 1",
            ["model", "probe", "revision"],
            registry=registry,
        )
        info.labels(model, bundle.card.id, bundle.revision).set(1)
        self.slots = Gauge("hguard_slots_in_use", "Score slots claimed by requests in flight", registry=registry)

    def observe(self, call: GuardCall) -> None:
        """Record a finished request; one that never reached the engine has nothing to record."""
        if call.choices == 0:
            return
        outcome = "off" if call.policy.mode is Mode.OFF else _severest(list(call.verdicts.values()))
        self._requests.labels(self._model, outcome).inc()
        self._overhead.labels(self._model).observe(call.overhead_seconds)
        for verdict in call.verdicts.values():
            if verdict.risk is not None:
                self._risk.labels(self._model).observe(verdict.risk)
                self._tokens.labels(self._model).inc(verdict.scored_tokens)


def _severest(verdicts: list[Verdict]) -> str:
    names = {_outcome(verdict) for verdict in verdicts} or {"not_scored"}
    return next(name for name in ("abstained", "not_scored", "flagged", "pass") if name in names)


def _outcome(verdict: Verdict) -> str:
    if verdict.decision.action is Action.ABSTAINED:
        return "abstained"
    return "not_scored" if verdict.risk is None else verdict.decision.action.value
