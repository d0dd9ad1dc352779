"""``tokens`` of a verdict: each character of the text that left stands in one of them, and none stands in two."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.scripted.server import over, scripted_app
from tests.scripted.test_scripted import CHAT, asking, result
from tests.scripted.test_withheld import COMPLETIONS, PROMPT, RESPONSES, id_of

MESSAGES = "/v1/messages"
OPTIONS = {"mode": "score", "tokens": True}


async def said(http: httpx.AsyncClient, path: str, words: str, stream: bool, **more: Any) -> list[tuple[str, Any]]:
    """(text, result) of each answer."""
    body = {"max_tokens": 64, "hallucination": OPTIONS, **asking(words, stream=stream, **more)}
    if path in (COMPLETIONS, RESPONSES):
        body["prompt" if path == COMPLETIONS else "input"] = PROMPT.format(body.pop("messages")[0]["content"])
    if path == RESPONSES:
        body["max_output_tokens"] = body.pop("max_tokens")
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    lines = response.text.split("\n") if stream else [f"data: {response.text}"]
    frames = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    texts: dict[int, str] = {}
    results: dict[int, Any] = {}
    for one in frames:
        for choice in one.get("choices", ()):
            part = choice.get("delta") or choice.get("message") or choice
            text = part.get("text" if path == COMPLETIONS else "content")
            texts[choice["index"]] = texts.get(choice["index"], "") + (text or "")
        if one.get("type") == "response.output_text.delta":
            texts[0] = texts.get(0, "") + one["delta"]
        if one.get("type") == "content_block_delta":
            texts[0] = texts.get(0, "") + one["delta"]["text"]
        if not stream and path == RESPONSES:
            texts[0] = one["output"][0]["content"][0]["text"]
        if not stream and path == MESSAGES:
            texts[0] = one["content"][0]["text"]
        verdict = one.get("hallucination") or (one.get("response") or {}).get("hallucination") or {}
        results.update((one["index"], one) for one in verdict.get("results", ()))
    assert sorted(texts) == sorted(results)
    return [(texts[index], results[index]) for index in sorted(texts)]


def require_spelled(text: str, found: Any) -> None:
    tokens = found["tokens"]
    assert "".join(token["token"] for token in tokens) == text
    assert [text[token["start"] : token["end"]] for token in tokens] == [token["token"] for token in tokens]
    assert [token["start"] for token in tokens] == [0, *[token["end"] for token in tokens[:-1]]]
    assert len(tokens) == found["scored_tokens"]
    assert 0 <= found["peak"]["start"] < found["peak"]["end"] <= len(tokens)


STOPS: dict[str, dict[str, Any]] = {
    "none": {},
    "at a token": {"stop": [" Lanka"]},
    "within a token": {"stop": ["ank"]},
    "within a token, shown": {"stop": ["ank"], "include_stop_str_in_output": True},
    "a token": {"stop_token_ids": [id_of(" Sri")]},
    "a token, shown": {"stop_token_ids": [id_of(" Sri")], "include_stop_str_in_output": True},
    "a length": {"max_tokens": 5},
}


@pytest.mark.parametrize("stop", list(STOPS))
async def test_they_make_up_the_text(http: httpx.AsyncClient, stop: str) -> None:
    for path in (CHAT, COMPLETIONS):
        for stream in (False, True):
            words = "unicode" if stop == "a length" else "safe"
            for text, found in await said(http, path, words, stream, **STOPS[stop]):
                require_spelled(text, found)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
async def test_on_every_route(http: httpx.AsyncClient, path: str) -> None:
    for stream in (False, True):
        for words in ("safe", "unicode", "long"):
            for text, found in await said(http, path, words, stream):
                assert text
                require_spelled(text, found)


async def test_of_several_answers(http: httpx.AsyncClient) -> None:
    for stream in (False, True):
        answers = await said(http, CHAT, "unicode second", stream, n=3, stop=[", 日"])
        assert [text for text, _ in answers] == ["Île-de-France"] * 3
        for text, found in answers:
            require_spelled(text, found)


async def test_where_answers_may_be_withheld(http: httpx.AsyncClient) -> None:
    for hold in ("none", "window", "answer"):
        options = {"mode": "abstain", "hold": hold, "tokens": True}
        for stream in (False, True):
            for text, found in await said(http, CHAT, "safe", stream, stop=[" Lanka"], hallucination=options):
                assert text == "It is in Sri"
                require_spelled(text, found)


@pytest.mark.parametrize("shown", [True, False])
async def test_special_tokens_are_text_where_they_are_shown(shown: bool) -> None:
    script = {"text": "It is</s>in Sri</s></s> Lanka."}
    async with scripted_app(**script) as made, over(made) as http:
        for stream in (False, True):
            more = {"ignore_eos": True, "skip_special_tokens": not shown, "max_tokens": 12}
            ((text, found),) = await said(http, CHAT, "safe", stream, **more)
            assert ("</s>" in text) is shown
            require_spelled(text, found)


async def test_given_text(http: httpx.AsyncClient) -> None:
    for response in ("It is in Japan.", "日本です", "Île-de-France, 日本 🇯🇵.", " a\n\nb ", "</s> and <s>"):
        reply = (await http.post("/risk", json={**asking("Where?"), "response": response})).json()
        require_spelled(response, result(reply))
