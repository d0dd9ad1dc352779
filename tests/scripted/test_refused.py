"""What vLLM would find out too late is 400 by name, also for streams: none begins with 200 and ends in an error."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.scripted.test_scripted import CHAT, asking


def nested(depth: int) -> Any:
    """Lists in lists."""
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


def schema(**parts: Any) -> dict[str, Any]:
    return {"structured_outputs": {"json": {"type": "object", **parts}}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"vllm_xargs": {"kv_transfer_params": "x"}}, "kv_transfer_params must be an object"),
        ({"vllm_xargs": {"ec_transfer_params": 3}}, "ec_transfer_params must be an object"),
        # The engine's process pickles it for its workers, and dies of more than about 490 levels.
        ({"kv_transfer_params": {"a": nested(600)}}, "kv_transfer_params"),
        ({"ec_transfer_params": {"a": nested(600)}}, "ec_transfer_params"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
        (schema(properties={"a": {"type": "string", "pattern": "("}}), "unclosed group"),
        (schema(patternProperties={"(": {"type": "string"}}), "'(' is no regular expression"),
        (schema(properties={"a": {"type": "string", "minLength": -5}}), "minLength is -5"),
        (schema(properties={"a": {"type": "banana"}}), "Invalid type: banana"),
        # xgrammar cannot divide, so llguidance reads it, here: 90 bytes for each item, and as long.
        (schema(properties={"a": {"type": "array", "items": {"multipleOf": 2}, "minItems": 10**6}}), "minItems"),
        # The engine's process says so once it compiles: 500, and a traceback in the log.
        (schema(minProperties=100), "minProperties"),
        (schema(properties={"a": {"type": "string", "minLength": 2**31}}), "minLength"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"messages": None}, "messages"),
        ({"structured_outputs": {"regex": "("}}, "invalid regex"),
        ({"structured_outputs": {"grammar": "root ::= x"}}, "Rule 'x' not found"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"allowed_token_ids": [999999]}, "allowed_token_ids"),
        ({"logprobs": True, "top_logprobs": 999}, "logprobs"),
    ],
)
async def test_chat(http: httpx.AsyncClient, more: dict[str, Any], named: str, stream: bool) -> None:
    response = await http.post(CHAT, json=asking("safe", stream=stream, max_tokens=8, **more))
    assert response.status_code == 400, response.text
    assert named in response.json()["error"]["message"]


async def test_completions(http: httpx.AsyncClient) -> None:
    body = {"model": "atlas", "prompt": "safe", "stream": True, "logit_bias": {"999999": 1}}
    response = await http.post("/v1/completions", json=body)
    assert response.status_code == 400
    assert "logit_bias" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_data_in_a_schema_is_left_alone(http: httpx.AsyncClient, stream: bool) -> None:
    more = schema(properties={"a": {"enum": [{"minLength": -5, "patternProperties": {"(": 1}}]}, "minLength": {}})
    response = await http.post(CHAT, json=asking("safe", stream=stream, max_tokens=8, **more))
    assert response.status_code == 200, response.text
