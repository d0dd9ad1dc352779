"""``usage`` counts what was generated, in whole answers, at the end of a stream, and along with it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.scripted.test_scripted import CHAT, asking
from tests.scripted.test_withheld import COMPLETIONS, PROMPT

ABSTAIN = {"mode": "abstain"}
OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": ABSTAIN,
    "withheld": ABSTAIN,
    "a second try": {**ABSTAIN, "retry_scale": 0},
    "a second try in vain": {**ABSTAIN, "retry_scale": 1},
    "a look ahead": {**ABSTAIN, "prompt_check": True},
    "refused ahead": {**ABSTAIN, "prompt_check": True},
}
WORDS = {"as it is": "safe", "a look ahead": "safe", "refused ahead": "risky prompt_risk"}


async def usages(http: httpx.AsyncClient, path: str, case: str, n: int, **more: Any) -> list[Any]:
    """(choice, or None for all; usage) of each chunk, or of the whole answer."""
    body = {"max_tokens": 40, **asking(WORDS.get(case, "risky"), n=n, hallucination=OPTIONS[case], **more)}
    if path == COMPLETIONS:
        body["prompt"] = PROMPT.format(body.pop("messages")[0]["content"])
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    lines = response.text.split("\n") if more else [f"data: {response.text}"]
    frames = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return [((one["choices"] or [{}])[0].get("index") if more else None, one["usage"]) for one in frames]


@pytest.mark.parametrize("case", list(OPTIONS))
async def test_running_usage_ends_as_the_last_says(http: httpx.AsyncClient, case: str) -> None:
    along = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    for path in (CHAT, COMPLETIONS):
        for n in (1, 3):
            ((_, whole),) = await usages(http, path, case, n)
            *running, (_, last) = await usages(http, path, case, n, **along)
            assert last["completion_tokens"] == whole["completion_tokens"]
            counts: dict[int, list[int]] = {}
            for index, usage in running:
                assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
                counts.setdefault(index, []).append(usage["completion_tokens"])
            assert sum(one[-1] for one in counts.values()) == last["completion_tokens"], (path, n)
            assert all(one == sorted(one) for one in counts.values())
