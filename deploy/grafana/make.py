"""Makes the two dashboards: ``python -m deploy.grafana.make``. Their JSON is what Grafana is provisioned with.

Panels use the recording rules of ``deploy/prometheus`` where alerts look at the same thing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.panels import Sheet

OUT = Path(__file__).parent / "dashboards"
MODEL = 'model=~"$model"'
ENGINE = 'model_name=~"$model"'
EVERY = "[$__rate_interval]"

OUTCOMES = {
    "pass": "green",
    "flagged": "gold",
    "abstained": "orange",
    "not_scored": "red",
    "off": "gray",
    "left": "blue",
}
GREEN_ABOVE: list[tuple[float | None, str]] = [(None, "red"), (1, "green")]


def _quantiles(histogram: str, selector: str, *which: float) -> list[tuple[str, str]]:
    return [
        (f"histogram_quantile({q}, sum by (le) (rate({histogram}_bucket{{{selector}}}{EVERY})))", f"p{100 * q:g}")
        for q in which
    ]


def _ratio(part: str, whole: str) -> str:
    return f"sum(rate({part}{{{ENGINE}}}{EVERY})) / (sum(rate({whole}{{{ENGINE}}}{EVERY})) > 0)"


def quality() -> Sheet:
    """What the guard sees and does."""
    made = Sheet(
        "hguard-quality", "hneuron-guard: quality", "Risks, verdicts and whether the probe still fits the traffic"
    )
    made.number(
        "Risk, median",
        f"histogram_quantile(0.5, sum by (le) (increase(hguard_risk_bucket{{{MODEL}}}[1h])))",
        "percentunit",
        "Of the answers of the last hour.",
    )
    made.number(
        "Abstained",
        f"hguard:abstained:ratio_rate15m{{{MODEL}}}",
        "percentunit",
        "Share of the requests of the last 15 minutes with an answer withheld.",
    )
    made.number(
        "Would abstain",
        f"sum(increase(hguard_would_abstain_total{{{MODEL}}}[1h]))",
        "short",
        "Answers of the last hour that were flagged, and that abstain mode would have withheld.",
    )
    made.number(
        "Not scored",
        f"hguard:unscored:ratio_rate5m{{{MODEL}}}",
        "percentunit",
        "Share of answers that could not be scored. Zero on a healthy server.",
        steps=[(None, "green"), (0.0001, "orange"), (0.01, "red")],
    )
    made.number(
        "Drift (PSI)",
        f"hguard:risk_psi:increase1h{{{MODEL}}}",
        "none",
        "Population stability index of the last hour's risks against the probe's calibration. Above 0.25 they differ.",
        steps=[(None, "green"), (0.1, "orange"), (0.25, "red")],
    )
    made.number(
        "Probe", f"hguard_probe_info{{{MODEL}}}", "none", "What guards the model.", legend="{{probe}} {{revision}}"
    )
    made.row("Verdicts")
    made.lines(
        "Requests by outcome",
        [(f"sum by (outcome) (rate(hguard_requests_total{{{MODEL}}}{EVERY}))", "{{outcome}}")],
        "reqps",
        "A request with several answers counts under its severest.",
        stacked=True,
        colors=OUTCOMES,
    )
    made.lines(
        "Abstentions",
        [
            (f"hguard:abstained:ratio_rate15m{{{MODEL}}}", "15 minutes"),
            (f"hguard:abstained:ratio_rate1d{{{MODEL}}}", "a day"),
        ],
        "percentunit",
        "Share of requests with an answer withheld; the alert compares the two.",
    )
    made.heat(
        "Risk of answers",
        f"sum by (le) (increase(hguard_risk_bucket{{{MODEL}}}{EVERY}))",
        "percentunit",
        "How many answers had which risk.",
    )
    made.lines(
        "Risk of answers, quantiles",
        _quantiles("hguard_risk", MODEL, 0.5, 0.9, 0.99),
        "percentunit",
        "From the same histogram.",
        top=1,
    )
    made.lines(
        "Retries",
        [(f"sum by (outcome) (rate(hguard_retries_total{{{MODEL}}}{EVERY}))", "{{outcome}}")],
        "ops",
        "Answers that were generated again with scaled neurons, by outcome.",
        stacked=True,
    )
    made.lines(
        "Scored tokens",
        [(f"sum(rate(hguard_scored_tokens_total{{{MODEL}}}{EVERY}))", "tokens")],
        "short",
        "Per second.",
    )
    made.row("Does the probe still fit?")
    made.lines(
        "Drift of risks (PSI)",
        [(f"hguard:risk_psi:increase1h{{{MODEL}}}", "{{model}}")],
        "none",
        "Of each hour's answers against the calibration's. Without 500 answers an hour much of it is chance.",
        width=6,
        steps=[(None, "transparent"), (0.1, "orange"), (0.25, "red")],
    )
    outside = f'sum by (model) (increase(hguard_domain_answers_total{{{MODEL}, in_domain="false"}}[1h]))'
    made.lines(
        "Questions of another kind",
        [(f"{outside} / sum by (model) (increase(hguard_domain_answers_total{{{MODEL}}}[1h]))", "{{model}}")],
        "percentunit",
        "Of an hour's questions those unlike the calibration's, of which one in twenty is. Above 20 % an alert fires.",
        width=6,
        steps=[(None, "transparent"), (0.1, "orange"), (0.2, "red")],
    )
    made.bars(
        "Answers by band of risk",
        [(f"hguard:risk_band:ratio_increase1h{{{MODEL}}}", "band {{band}}")],
        "percentunit",
        "Shares of the last hour's answers. Each band held about a tenth of the calibration answers.",
        width=6,
    )
    made.labels("Probes", f"hguard_probe_info{{{MODEL}}}", "One line for each replica.", width=6)
    made.row("Where the guard failed")
    made.lines(
        "Passed without a score",
        [(f"sum by (reason) (rate(hguard_bypass_total{{{MODEL}}}{EVERY}))", "{{reason}}")],
        "ops",
        "The guard failed open.",
    )
    made.lines(
        "Withheld for want of a score",
        [(f"sum by (reason) (rate(hguard_withheld_unscored_total{{{MODEL}}}{EVERY}))", "{{reason}}")],
        "ops",
        "The guard failed closed.",
    )
    return made


def service() -> Sheet:
    """How the server and its engine are doing."""
    made = Sheet(
        "hguard-service", "hneuron-guard: service and engine", "Load, latency, limits and what the guard costs"
    )
    made.number("Replicas up", 'sum(up{job="hguard"})', "none", "That answer Prometheus.", steps=GREEN_ABOVE)
    made.number(
        "Answers in flight",
        "sum(hguard_answers_in_flight) / sum(hguard_answers_capacity)",
        "percentunit",
        "Of those that run or may wait. At 100 % the next ones are refused.",
        steps=[(None, "green"), (0.8, "orange"), (1, "red")],
    )
    made.number(
        "Time to first token, p95",
        _quantiles("vllm:time_to_first_token_seconds", ENGINE, 0.95)[0][0].replace(EVERY, "[5m]"),
        "s",
        "Over five minutes, in the engine. What the caller sees depends on hold.",
    )
    made.number(
        "Generated tokens",
        f"sum(rate(vllm:generation_tokens_total{{{ENGINE}}}[5m]))",
        "short",
        "Per second, over five minutes.",
    )
    made.number(
        "Queue full",
        "hguard:queue_full:ratio_rate5m",
        "percentunit",
        "Share of requests that were refused because the queue was full.",
        steps=[(None, "green"), (0.001, "orange"), (0.01, "red")],
    )
    made.number(
        "Guard's share of time",
        f"hguard:overhead:ratio_rate5m{{{MODEL}}}",
        "percentunit",
        "Of what requests take: reading scores and deciding, in the API process.",
        steps=[(None, "green"), (0.05, "orange")],
    )
    made.row("Requests")
    made.lines(
        "Responses by status",
        [(f"sum by (status) (rate(http_requests_total{EVERY}))", "{{status}}")],
        "reqps",
        "All routes.",
        stacked=True,
    )
    made.lines(
        "Refused at the ingress",
        [(f"sum by (reason) (rate(hguard_refused_total{EVERY}))", "{{reason}}")],
        "reqps",
        "Before the engine saw them.",
        stacked=True,
    )
    made.lines(
        "In flight",
        [
            ("sum(hguard_requests_in_flight)", "requests"),
            ("sum(hguard_answers_in_flight)", "answers"),
            ("sum(hguard_answers_capacity)", "capacity, answers"),
            ("sum(hguard_draining)", "draining replicas"),
        ],
        "none",
        "Requests that were admitted and are not answered yet.",
    )
    made.lines(
        "Latency of requests",
        _quantiles("vllm:e2e_request_latency_seconds", ENGINE, 0.5, 0.95, 0.99),
        "s",
        "From arrival in the engine's queue to the last token.",
    )
    made.row("Engine")
    made.lines(
        "Tokens",
        [
            (f"sum(rate(vllm:prompt_tokens_total{{{ENGINE}}}{EVERY}))", "prompt"),
            (f"sum(rate(vllm:generation_tokens_total{{{ENGINE}}}{EVERY}))", "generated"),
        ],
        "short",
        "Per second.",
    )
    made.lines(
        "Sequences",
        [
            (f"sum(vllm:num_requests_running{{{ENGINE}}})", "running"),
            (f"sum(vllm:num_requests_waiting{{{ENGINE}}})", "waiting"),
        ],
        "none",
        "What scaling looks at: waiting means that the engine is full.",
    )
    made.lines(
        "Time to first token",
        _quantiles("vllm:time_to_first_token_seconds", ENGINE, 0.5, 0.95, 0.99),
        "s",
        "In the engine.",
    )
    made.lines(
        "Inter-token latency",
        _quantiles("vllm:inter_token_latency_seconds", ENGINE, 0.5, 0.95, 0.99),
        "s",
        "Time between two tokens of an answer, in the engine.",
    )
    made.lines(
        "KV cache",
        [
            (f"max(vllm:kv_cache_usage_perc{{{ENGINE}}})", "in use"),
            (_ratio("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"), "prefix cache hits"),
        ],
        "percentunit",
        "Of the fullest replica; and the share of prompt tokens that were in the cache.",
        top=1,
    )
    made.lines(
        "Preempted sequences",
        [(f"sum(rate(vllm:num_preemptions_total{{{ENGINE}}}{EVERY}))", "preempted")],
        "ops",
        "For want of KV cache; they are computed again.",
    )
    made.row("The guard's own cost")
    made.lines(
        "Reading scores and deciding",
        _quantiles("hguard_overhead_seconds", MODEL, 0.5, 0.99),
        "s",
        "Time in the API process for each request.",
        width=8,
    )
    made.lines(
        "Score slots",
        [("sum(hguard_slots_in_use)", "in use"), ("sum(hguard_slots)", "total")],
        "none",
        "One for each answer in flight.",
        width=8,
    )
    made.lines(
        "Memory of the API process",
        [('process_resident_memory_bytes{job="hguard"}', "{{instance}}")],
        "bytes",
        "The engine's workers are processes of their own.",
        width=8,
    )
    return made


def rendered(sheet: Sheet) -> str:
    return json.dumps(sheet.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def files() -> dict[str, str]:
    """What belongs into ``dashboards/``, by file name."""
    made: dict[str, Any] = {"quality.json": quality(), "service.json": service()}
    return {name: rendered(sheet) for name, sheet in made.items()}


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for name, text in files().items():
        (OUT / name).write_text(text, encoding="utf-8")
