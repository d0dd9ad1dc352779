"""A conversation goes on after an answer was withheld: what stood in its place comes back as the caller's history."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

RISKY, SAFE = "Is it risky?", "Is it safe?"


async def answer(http: httpx.AsyncClient, path: str, **body: Any) -> Any:
    response = await http.post(path, json={"model": "atlas", "hallucination": {"mode": "abstain"}, **body})
    assert response.status_code == 200, response.text
    return response.json()


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def action(reply: Any) -> str:
    return str(reply["hallucination"]["results"][0]["action"])


@pytest.mark.parametrize("fallback", ["refusal", "message"])
async def test_responses(http: httpx.AsyncClient, fallback: str) -> None:
    asked = {"hallucination": {"mode": "abstain", "fallback": fallback}}
    first = await answer(http, "/v1/responses", input=RISKY, **asked)
    assert action(first) == "abstained"
    second = await answer(http, "/v1/responses", input=[user(RISKY), *first["output"], user(SAFE)])
    assert action(second) == "pass"


@pytest.mark.parametrize(
    "content", [[], [{"type": "refusal", "refusal": "No."}], [{"type": "output_text", "text": "a"}]]
)
async def test_what_an_assistant_s_message_may_hold(http: httpx.AsyncClient, content: list[Any]) -> None:
    said = {"type": "message", "role": "assistant", "content": content}
    reply = await answer(http, "/v1/responses", input=[user(RISKY), said, user(SAFE)])
    assert action(reply) == "pass"


async def test_a_refusal_is_read_by_the_model(http: httpx.AsyncClient) -> None:
    """Its text is part of the prompt, as any answer's."""
    lengths = []
    for refusal in ("No.", "No, and here are many more words about it."):
        said = {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": refusal}]}
        reply = await answer(http, "/v1/responses", input=[user(RISKY), said, user(SAFE)])
        lengths.append(reply["usage"]["input_tokens"])
    assert lengths[0] < lengths[1]


@pytest.mark.parametrize("wrong", [{"type": "refusal", "refusal": 5}, {"type": "refusal"}, 5, None])
async def test_what_is_none_is_refused(http: httpx.AsyncClient, wrong: Any) -> None:
    said = {"type": "message", "role": "assistant", "content": [wrong]}
    response = await http.post("/v1/responses", json={"model": "atlas", "input": [user(RISKY), said, user(SAFE)]})
    assert response.status_code == 400, response.text


async def test_chat(http: httpx.AsyncClient) -> None:
    first = await answer(http, "/v1/chat/completions", messages=[user(RISKY)])
    assert action(first) == "abstained"
    said = first["choices"][0]["message"]
    second = await answer(http, "/v1/chat/completions", messages=[user(RISKY), said, user(SAFE)])
    assert action(second) == "pass"


async def test_messages(http: httpx.AsyncClient) -> None:
    first = await answer(http, "/v1/messages", messages=[user(RISKY)], max_tokens=64)
    assert action(first) == "abstained"
    said = {"role": "assistant", "content": first["content"]}
    second = await answer(http, "/v1/messages", messages=[user(RISKY), said, user(SAFE)], max_tokens=64)
    assert action(second) == "pass"


async def test_what_a_function_said_comes_back_as_it_was_read(http: httpx.AsyncClient) -> None:
    """With all that the API shows of it; atlas, which knows no tools, is what refuses it."""
    said = {"type": "function_call_output", "call_id": "x", "output": [{"type": "input_text", "text": "abc"}]}
    shown = {**said, "id": "fc", "status": "completed", "created_by": "me"}
    replies = [
        await http.post("/v1/responses", json={"model": "atlas", "input": [user(SAFE), item]}) for item in (said, shown)
    ]
    assert [reply.status_code for reply in replies] == [400, 400]
    assert replies[0].json() == replies[1].json()
    assert "not tool" in replies[0].text
