"""vLLM's counters, less the guard's own requests, are what callers asked for."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.scripted.test_scripted import CHAT, ask, asking


async def counted(http: httpx.AsyncClient) -> dict[str, float]:
    """By name and purpose, summed over the rest."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families((await http.get("/metrics")).text):
        for sample in family.samples:
            key = " ".join(filter(None, (sample.name, sample.labels.get("purpose"))))
            found[key] = found.get(key, 0) + sample.value
    return found


async def test_own_requests_are_told_apart(http: httpx.AsyncClient) -> None:
    start = await counted(http)
    for purpose in ("self_test", "risk", "turn", "prompt_check"):
        assert f"hguard_engine_requests_total {purpose}" in start, "at zero before the first"
    prompts = [(await ask(http, text))["usage"]["prompt_tokens"] for text in ("one", "two and more")]
    given = {**asking("one"), "response": "It is in Japan."}
    for _ in range(3):
        assert (await http.post("/risk", json=given)).status_code == 200
    looked = await http.post(CHAT, json=asking("one", hallucination={"mode": "abstain", "prompt_check": True}))
    assert looked.status_code == 200, looked.text
    prompts.append(looked.json()["usage"]["prompt_tokens"])
    now = await counted(http)
    more = {name: now[name] - start.get(name, 0) for name in now}
    assert more["hguard_engine_requests_total self_test"] == 0
    assert more["hguard_engine_requests_total risk"] == 3
    assert more["hguard_engine_requests_total prompt_check"] == 1
    assert more["hguard_engine_prompt_tokens_total prompt_check"] == prompts[0]
    own = ("self_test", "risk", "turn", "prompt_check")
    requests = sum(more[f"hguard_engine_requests_total {one}"] for one in own)
    tokens = sum(more[f"hguard_engine_prompt_tokens_total {one}"] for one in own)
    assert more["vllm:request_success_total"] - requests == len(prompts)
    assert more["vllm:prompt_tokens_total"] - tokens == sum(prompts)
