"""What is counted of a request's verdicts."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from app.protocols.adapters.registry import CHAT
from app.protocols.wire import Writer
from app.telemetry.metrics import Metrics
from app.telemetry.record import Exporters, LogLine, RequestRecord
from guard.engine.context import RequestContext, Verdict
from guard.policy import Mode, Policy, decide
from guard.probe.bundle import Bundle
from guard.probe.signals import TokenSignals
from tests.documents import ROOT
from tests.measured import token_signals


@pytest.fixture
def known(bundle: Bundle) -> Bundle:
    """One that says what its calibration answers' risks were: as many wrong as right ones, evenly spread."""
    return replace(bundle, wrong_risks=bundle.right_risks)


def observe(bundle: Bundle, policy: Policy, **of_verdict: object) -> list[float]:
    """How many answers each band has after one request."""
    registry = CollectorRegistry()
    metrics = Metrics(bundle, "small", registry)
    verdict = Verdict(0, policy, decide(0.95, policy), 0.95, None, [1])
    call = RequestContext(policy, choices=1, verdicts={0: replace(verdict, **of_verdict)})
    metrics.observe(RequestRecord(CHAT, call, 0.1))
    return [
        sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "hguard_risk_band_answers_total"
    ]


def test_an_answer_counts_in_its_band(known: Bundle) -> None:
    assert observe(known, Policy(Mode.SCORE, 0.5)) == [0] * 9 + [1]


def test_a_second_try_counts_as_what_the_first_one_was(known: Bundle) -> None:
    assert observe(known, Policy(Mode.ABSTAIN, 0.5), first_risk=0.95, risk=0.05) == [0] * 9 + [1]


@pytest.mark.parametrize(
    ("policy", "of_verdict"),
    [
        (Policy(Mode.SCORE, 0.5, scale=0.5), {}),
        (Policy(Mode.ABSTAIN, 0.5), {"prompt_refused": True}),
        (Policy(Mode.SCORE, 0.5), {"risk": None}),
    ],
)
def test_what_the_calibration_did_not_see_counts_in_none(
    known: Bundle, policy: Policy, of_verdict: dict[str, object]
) -> None:
    assert observe(known, policy, **of_verdict) == [0] * 10


def test_a_bundle_that_does_not_say_has_no_bands(bundle: Bundle) -> None:
    assert observe(bundle, Policy(Mode.SCORE, 0.5)) == []


def test_expected_shares_stand_beside_the_counts(known: Bundle) -> None:
    registry = CollectorRegistry()
    Metrics(known, "small", registry)
    shares = [
        registry.get_sample_value("hguard_risk_band_expected_ratio", {"model": "small", "band": str(i)})
        for i in range(10)
    ]
    assert known.bands is not None
    assert shares == list(known.bands.shares)


@pytest.mark.parametrize(("longest", "beyond"), [(None, False), (3, False), (2, True)])
def test_an_answer_longer_than_those_that_set_the_thresholds_is_marked_and_counted(
    bundle: Bundle, longest: int | None, beyond: bool
) -> None:
    policy = Policy(Mode.SCORE, 0.5)
    readout = replace(bundle.readout, calibrated_tokens=longest)
    told = Verdict(0, policy, decide(0.25, policy), 0.25, None, [1, 2, 3], readout=readout)
    registry = CollectorRegistry()
    call = RequestContext(policy, choices=1, verdicts={0: told})
    Metrics(bundle, "small", registry).observe(RequestRecord(CHAT, call, 0.1))
    counted = registry.get_sample_value("hguard_answers_beyond_calibration_total", {"model": "small"})
    assert counted == int(beyond)
    written = Writer(bundle, lambda ids: []).write([told])["results"][0]
    assert written.get("beyond_calibration", False) is beyond
    # The length of a withheld answer is not told that exactly.
    withheld = replace(told, policy=Policy(Mode.ABSTAIN, 0.2), decision=decide(0.25, Policy(Mode.ABSTAIN, 0.2)))
    assert "beyond_calibration" not in Writer(bundle, lambda ids: []).write([withheld])["results"][0]


@pytest.mark.parametrize(("limit", "known"), [(None, None), (4.0, True), (3.0, True), (2.0, False)])
@pytest.mark.parametrize("mode", [Mode.SCORE, Mode.ABSTAIN])
def test_whether_the_question_is_of_the_calibration_s_kind_is_said_and_counted(
    bundle: Bundle, limit: float | None, known: bool | None, mode: Mode
) -> None:
    """Of a withheld answer, too: it is the question's."""
    policy = Policy(mode, 0.2)
    readout = replace(bundle.readout, distance_limit=limit)
    signals = token_signals(0.0, [1.0] * 3, [1.0] * 3, [-1.0] * 3)
    signals = TokenSignals({**signals.last_prompt, "distance": 3.0}, signals.values)
    told = Verdict(0, policy, decide(0.25, policy), 0.25, None, [1, 2, 3], readout=readout, signals=signals)
    registry = CollectorRegistry()
    Metrics(bundle, "small", registry).observe(RequestRecord(CHAT, RequestContext(policy, 1, {0: told}), 0.1))
    counted = {
        value: registry.get_sample_value("hguard_domain_answers_total", {"model": "small", "in_domain": value})
        for value in ("true", "false")
    }
    assert counted == {"true": int(known is True), "false": int(known is False)}
    written = Writer(bundle, lambda ids: []).write([told])["results"][0]
    assert written.get("in_domain") is known
    # What scaled neurons move tells nothing, and neither does what was not measured.
    assert replace(told, policy=replace(policy, scale=0.5)).in_domain is None
    assert replace(told, first_risk=0.9).in_domain is None
    assert replace(told, signals=token_signals(0.0, [1.0], [1.0], [-1.0])).in_domain is None


def test_an_exporter_that_fails_takes_nothing_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def observe(self, record: RequestRecord) -> None:
            raise RuntimeError("no route to the collector")

    record = RequestRecord(CHAT, RequestContext(Policy(Mode.SCORE, 0.5)), 0.1)
    with caplog.at_level(logging.INFO, "hguard"):
        Exporters((Broken(), LogLine())).observe(record)
    failed, line = caplog.records
    assert failed.getMessage() == f"Broken failed on a request to {CHAT}"
    assert json.loads(line.getMessage())["route"] == CHAT


def test_every_field_of_the_log_is_documented(caplog: pytest.LogCaptureFixture) -> None:
    call = RequestContext(Policy(Mode.SCORE, 0.5, explain=True, explain_neurons=True))
    with caplog.at_level(logging.INFO, "hguard"):
        LogLine().observe(RequestRecord(CHAT, call, 0.1))
    table = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").split("\n## The log\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert set(json.loads(caplog.records[0].getMessage())) == set(re.findall(r"`(\w+)`", " ".join(rows)))
