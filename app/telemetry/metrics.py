"""Prometheus metrics of the guard, beside vLLM's own in the same registry. Labels name no user, id or prompt."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from app.errors import Reason
from app.ingress.admission import Admission
from app.telemetry.record import RequestRecord
from guard.engine.context import Unscored, Verdict
from guard.engine.traffic import OwnRequests, Purpose
from guard.policy import Action, Mode
from guard.probe.bundle import Bundle

# What a request may come to; the last two have no verdict. ``left``: the caller hung up before there was one.
OUTCOMES = ("pass", "flagged", "abstained", "not_scored", "off", "left")
RISK_BUCKETS = tuple(round(0.05 * i, 2) for i in range(1, 21))
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
            "hguard_risk", "Calibrated risk of each scored answer", ["model"], buckets=RISK_BUCKETS, registry=registry
        ).labels(model)
        self._tokens = Counter(
            "hguard_scored_tokens_total", "Answer tokens that were scored", ["model"], registry=registry
        ).labels(model)
        self._beyond = Counter(
            "hguard_answers_beyond_calibration_total",
            "Scored answers longer than any that stands behind the probe's thresholds",
            ["model"],
            registry=registry,
        ).labels(model)
        self._domain = Counter(
            "hguard_domain_answers_total",
            "Scored answers by whether their question is of a kind that the probe's thresholds come from",
            ["model", "in_domain"],
            registry=registry,
        )
        self._in_domain = {known: self._domain.labels(model, str(known).lower()) for known in (True, False)}
        self._declined = Counter(
            "hguard_declined_answers_total",
            "Scored answers that only say that they do not know, which pass whatever their risk",
            ["model"],
            registry=registry,
        ).labels(model)
        self._overhead = Histogram(
            "hguard_overhead_seconds",
            "Time that the API process spent on reading scores and deciding, for each request",
            ["model"],
            buckets=_SECONDS_BUCKETS,
            registry=registry,
        ).labels(model)
        self._bypass = Counter(
            "hguard_bypass_total",
            "Answers that passed although they could not be scored",
            ["model", "reason"],
            registry=registry,
        )
        self._unscored = Counter(
            "hguard_withheld_unscored_total",
            "Answers that were withheld because they could not be scored",
            ["model", "reason"],
            registry=registry,
        )
        for reason in Unscored:
            if reason.failed:
                self._bypass.labels(model, reason.value)
                self._unscored.labels(model, reason.value)
        self._would_abstain = Counter(
            "hguard_would_abstain_total",
            "Answers in flag mode, and texts given to /risk, that abstain mode would have withheld",
            ["model"],
            registry=registry,
        ).labels(model)
        self._retries = Counter(
            "hguard_retries_total", "Retries with scaled neurons", ["model", "outcome"], registry=registry
        )
        for outcome in ("pass", "abstained"):
            self._retries.labels(model, outcome)
        labels = ["model", "band"]
        self._band = Counter(
            "hguard_risk_band_answers_total",
            "Scored answers of the unscaled model per band of calibration risks; absent below 100 of these",
            labels,
            registry=registry,
        )
        self._expected = Gauge(
            "hguard_risk_band_expected_ratio",
            "Share of the calibration answers in each band",
            labels,
            registry=registry,
        )
        self._info = Gauge(
            "hguard_probe_info",
            "The probe that guards the model; always 1",
            ["model", "probe", "revision"],
            registry=registry,
        )
        self._take(bundle)
        self._exchanges = Counter(
            "hguard_probe_exchanges_total",
            "Probes that SIGHUP had exchanged on the running server, and that were refused",
            ["model", "outcome"],
            registry=registry,
        )
        for outcome in ("exchanged", "refused"):
            self._exchanges.labels(model, outcome)
        self.slots = Gauge("hguard_slots_in_use", "Score slots claimed by requests in flight", registry=registry)
        self.all_slots = Gauge("hguard_slots", "Score slots in total", registry=registry)

    def exchanged(self, bundle: Bundle | None) -> None:
        """Another probe serves from now on, or was refused: None."""
        self._exchanges.labels(self._model, "exchanged" if bundle else "refused").inc()
        if bundle:
            self._take(bundle)

    def _take(self, bundle: Bundle) -> None:
        """Name this probe, and count its bands from zero, beside each one's share of the calibration answers."""
        for one in (self._band, self._expected, self._info):
            one.clear()
        self._bundle, self._bands = bundle, bundle.bands
        self._info.labels(self._model, bundle.card.id, bundle.revision).set(1)
        expected = self._bands.shares if self._bands else ()
        for band, value in enumerate(expected):
            self._expected.labels(self._model, f"{band}").set(value)
        self._in_band = [self._band.labels(self._model, f"{band}") for band in range(len(expected))]

    def observe(self, record: RequestRecord) -> None:
        """Count a finished request; one that never reached the engine has nothing to count."""
        call = record.call
        if call.choices == 0:
            return
        if call.policy.mode is Mode.OFF:
            outcome = "off"
        else:
            outcome = "left" if call.left else _severest(list(call.verdicts.values()))
        self._requests.labels(self._model, outcome).inc()
        self._overhead.observe(call.overhead_seconds)
        for verdict in call.verdicts.values():
            self._observe_answer(verdict)
            if call.policy.scale == 1.0 and (call.bundle is None or call.bundle is self._bundle):
                self._observe_drift(verdict)

    def _observe_drift(self, verdict: Verdict) -> None:
        """Prompts that were refused, what declines, and what scaled neurons answer, were not what the calibration saw;
        nor are another probe's risks to be held against this one's."""
        risk = verdict.risk if verdict.first_risk is None else verdict.first_risk
        left_out = verdict.prompt_refused or (verdict.declined and verdict.first_risk is None)
        if self._bands is not None and risk is not None and not left_out:
            self._in_band[self._bands.of(risk)].inc()

    def _observe_answer(self, verdict: Verdict) -> None:
        action = verdict.decision.action
        if verdict.risk is not None:
            self._risk.observe(verdict.risk)
            self._tokens.inc(verdict.scored_tokens)
        if verdict.declined:
            self._declined.inc()
        if verdict.beyond_calibration:
            self._beyond.inc()
        if (known := verdict.in_domain) is not None:
            self._in_domain[known].inc()
        # What is marked without a score is a text given to /risk: nothing passed, and nothing was withheld.
        if verdict.reason is not None and verdict.reason.failed and action is not Action.FLAGGED:
            counter = self._unscored if action is Action.ABSTAINED else self._bypass
            counter.labels(self._model, verdict.reason.value).inc()
        if verdict.decision.flagged and action is Action.FLAGGED:
            self._would_abstain.inc()
        if verdict.first_risk is not None:
            outcome = "abstained" if action is Action.ABSTAINED else "pass"
            self._retries.labels(self._model, outcome).inc()


def _severest(verdicts: list[Verdict]) -> str:
    names = {_outcome(verdict) for verdict in verdicts} or {"not_scored"}
    return next(name for name in ("abstained", "not_scored", "flagged", "pass") if name in names)


def _outcome(verdict: Verdict) -> str:
    if verdict.decision.action is Action.ABSTAINED:
        return "abstained"
    return "not_scored" if verdict.risk is None else verdict.decision.action.value


class OwnRequestsMetrics(Collector):
    """What vLLM's counters hold beside the requests of callers; made once per process."""

    def __init__(self, own: OwnRequests, model: str, registry: CollectorRegistry = REGISTRY) -> None:
        self._own, self._model = own, model
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Both counters, of every purpose."""
        text = "that the guard itself sent to the engine; vLLM's counters include them"
        for name, what, counted in (
            ("hguard_engine_requests_total", f"Requests {text}", self._own.requests),
            ("hguard_engine_prompt_tokens_total", f"Prompt tokens of requests {text}", self._own.prompt_tokens),
        ):
            family = CounterMetricFamily(name, what, labels=["model", "purpose"])
            for purpose in Purpose:
                family.add_metric([self._model, purpose.value], counted[purpose])
            yield family


class IngressMetrics:
    """What the ingress refuses and what is in flight; made once per process, every series at zero at first."""

    def __init__(self, admission: Admission, registry: CollectorRegistry = REGISTRY) -> None:
        refused = Counter("hguard_refused_total", "Requests refused at the ingress", ["reason"], registry=registry)
        self._refused = {reason: refused.labels(reason.value) for reason in Reason}
        for name, text, value in (
            ("hguard_requests_in_flight", "Requests in flight", lambda: admission.requests),
            ("hguard_answers_in_flight", "Answers running or queued", lambda: admission.answers),
            (
                "hguard_answers_capacity",
                "Answers that may run or queue at once",
                lambda: admission.capacity,
            ),
            (
                "hguard_draining",
                "1 while the server drains: it finishes what is in flight and refuses new requests",
                lambda: bool(admission.closing),
            ),
        ):
            Gauge(name, text, registry=registry).set_function(value)

    def refused(self, reason: Reason) -> None:
        self._refused[reason].inc()
