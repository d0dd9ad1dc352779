"""A second probe beside the one that serves: scored on the same signals and counted, and it decides nothing."""

from __future__ import annotations

import numpy as np
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from app.telemetry.metrics import RISK_BUCKETS
from app.telemetry.record import RequestRecord
from guard.engine.context import Verdict
from guard.probe.bundle import Bundle

_NOT_SCORED = "not_scored"


class Shadow:
    """Holds ``bundle``, at ``threshold``, against each verdict; an exporter, made once per process.

    What the serving probe withheld midway the other sees as far as it went.
    """

    def __init__(self, bundle: Bundle, threshold: float, model: str, registry: CollectorRegistry = REGISTRY) -> None:
        self._bundle, self._readout, self._threshold = bundle, bundle.readout, threshold
        self._serving: tuple[Bundle | None, bool] = (None, False)
        names = model, bundle.card.id, bundle.revision
        self._risk = Histogram(
            "hguard_shadow_risk",
            "Calibrated risk of each scored answer by the shadow probe",
            ["model", "probe", "revision"],
            buckets=RISK_BUCKETS,
            registry=registry,
        ).labels(*names)
        answers = Counter(
            "hguard_shadow_answers_total",
            "Scored answers by what the serving probe's risk says at its threshold, and the shadow's at its own",
            ["model", "probe", "revision", "serving", "shadow"],
            registry=registry,
        )
        self._answers = {
            (serving, shadow): answers.labels(*names, serving, shadow)
            for serving in ("pass", "flagged")
            for shadow in ("pass", "flagged", _NOT_SCORED)
        }

    def observe(self, record: RequestRecord) -> None:
        """Count a finished request's answers that were scored."""
        for verdict in record.call.verdicts.values():
            if verdict.risk is not None and not verdict.prompt_refused:
                self._observe(verdict, record.call.bundle)

    def _observe(self, verdict: Verdict, serving: Bundle | None) -> None:
        risk = self._risk_of(verdict) if self._reads_within(serving) else None
        said = _NOT_SCORED
        if risk is not None:
            self._risk.observe(risk)
            flagged = risk >= self._threshold and not verdict.declined
            said = "flagged" if flagged else "pass"
        self._answers["flagged" if verdict.decision.flagged else "pass", said].inc()

    def _risk_of(self, verdict: Verdict) -> float | None:
        """None where a signal that the shadow reads is missing."""
        signals = verdict.signals
        if signals is None or signals.fault(self._readout.used) is not None:
            return None
        risk, _ = self._readout.risk(signals)
        return risk if np.isfinite(risk) else None

    def _reads_within(self, serving: Bundle | None) -> bool:
        """Whether the probe that served reads all that the shadow does; another may have taken its place (SIGHUP)."""
        if serving is not self._serving[0]:
            self._serving = serving, serving is None or self._bundle.reads_within(serving)
        return self._serving[1]
