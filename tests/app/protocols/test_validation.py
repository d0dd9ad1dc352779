"""What vLLM would fall over is refused: the request's fault is never the server's error."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from starlette.requests import Request
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from app.protocols import validation
from guard.compat import make_arg_parser
from tests.scripted.engine import ScriptedCore
from tests.scripted.server import forget_metrics, scripted_app

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
JSON = {"content-type": "application/json"}
TURN = {"role": "user", "content": "safe"}
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"model": "atlas", "messages": [TURN]},
    COMPLETIONS: {"model": "atlas", "prompt": "safe"},
    RESPONSES: {"model": "atlas", "input": "safe"},
    MESSAGES: {"model": "atlas", "messages": [TURN], "max_tokens": 8},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with scripted_app() as app:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://scripted") as client:
            yield client
        assert app.state.engine_client.pool.in_use == 0
        assert app.state.admission.requests == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "more"),
    [
        (CHAT, {"structured_outputs": True}),
        (COMPLETIONS, {"structured_outputs": True}),
        (CHAT, {"tools": [{}], "tool_choice": {"type": "function", "function": {"name": "f"}}}),
        (CHAT, {"stream_interval": 2**64}),
        (COMPLETIONS, {"stop_token_ids": [2**64]}),
        (CHAT, {"bad_words": ["\ud800"]}),
        (MESSAGES, {"top_k": 2**64}),
        (MESSAGES, {"metadata": {"\udfff": "x"}}),
        (RESPONSES, {"top_k": "18446744073709551616"}),
        (RESPONSES, {"metadata": {"a": "\ud800"}}),
        (RESPONSES, {"logit_bias": {"-1": 1}}),
    ],
)
async def test_the_requests_fault(http: httpx.AsyncClient, path: str, more: dict[str, Any], stream: bool) -> None:
    content = json.dumps({**GOOD[path], **more, "stream": stream})  # httpx would not spell a surrogate
    response = await http.post(path, content=content, headers=JSON)
    if response.status_code == 200:  # vLLM's responses route begins its stream before it looks at everything
        assert path == RESPONSES
        assert stream
        *_, last = (json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: "))
        assert (last["type"], last["code"]) == ("error", "invalid_request_error")
        assert last["message"]
        return
    assert response.status_code == 400
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(("path", "status"), [("/v1/embeddings", 404), ("/v1/chat/completions", 405), ("/v1/x", 404)])
async def test_no_such_route(http: httpx.AsyncClient, path: str, status: int) -> None:
    response = await http.put(path, json={})
    assert response.status_code == status
    assert response.json()["error"]["code"] == status
    assert ("allow" in response.headers) is (status == 405)


@pytest.fixture(scope="module")
def plain() -> httpx.AsyncClient:
    """vLLM's own routes; what is malformed needs no engine."""
    from vllm.entrypoints.openai.api_server import build_app
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    forget_metrics()
    app = build_app(make_arg_parser(FlexibleArgumentParser()).parse_args([]), ("generate",))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://plain")


@pytest.mark.parametrize("path", [*GOOD, "/tokenize", "/detokenize", "/v1/messages/count_tokens"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"messages": [}', b'{"a": 1} x', b"[1]", b'"x"', b"null", "{é".encode(), b'{"a": "\n"}']
)
async def test_malformed_bodies_are_as_vllm_says(
    http: httpx.AsyncClient, plain: httpx.AsyncClient, path: str, content: bytes
) -> None:
    replies = [await client.post(path, content=content, headers=JSON) for client in (plain, http)]
    assert [reply.status_code for reply in replies] == [400, 400]
    vllm, ours = (reply.json()["error"] for reply in replies)
    if path.startswith(MESSAGES):  # in the shape of its API
        assert (replies[1].json()["type"], ours["type"]) == ("error", "invalid_request_error")
        return
    assert [ours[field] for field in ("type", "param", "code")] == [vllm[field] for field in ("type", "param", "code")]


@pytest.mark.parametrize("content", [b"[" * 50_000, b'{"n": 1' + b"0" * 5000 + b"}", b"\xff\xfe{"])
async def test_what_is_no_json_at_any_position(http: httpx.AsyncClient, content: bytes) -> None:
    error = (await http.post(CHAT, content=content, headers=JSON)).json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("Bad Request", "body", 400)


@pytest.mark.parametrize("path", [*GOOD, "/risk", "/tokenize"])
@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH", "TRACE", "PROPFIND", "GET"])
async def test_other_methods_are_not_allowed(http: httpx.AsyncClient, method: str, path: str) -> None:
    for content in (b"", b"{", json.dumps(GOOD[CHAT]).encode()):
        response = await http.request(method, path, content=content, headers=JSON)
        assert (response.status_code, response.headers["allow"]) == (405, "POST")
        assert response.json()["error"]["code"] == 405


async def test_a_body_that_is_no_text(http: httpx.AsyncClient) -> None:
    response = await http.post("/tokenize", content=b"\xff\xfe{", headers=JSON)
    assert (response.status_code, response.json()["error"]["type"]) == (400, "Bad Request")


async def test_our_own_faults_stay_errors_of_the_server() -> None:
    error = AttributeError("ours")
    with pytest.raises(AttributeError):
        await validation._answer(Request({"type": "http", "path": "/", "headers": []}), error)


async def test_characters_of_two_halves_pass(http: httpx.AsyncClient) -> None:
    body = {"model": "atlas", "messages": [{"role": "user", "content": "safe 🇯🇵"}]}
    for ascii_only in (True, False):
        response = await http.post(CHAT, content=json.dumps(body, ensure_ascii=ascii_only), headers=JSON)
        assert response.status_code == 200


async def test_the_app_serves_on(http: httpx.AsyncClient) -> None:
    for path, body in GOOD.items():
        assert (await http.post(path, json=body)).status_code == 200


@pytest.mark.parametrize(
    "more", [{}, {"n": 2, "temperature": 1}, {"hallucination": {"mode": "abstain", "retry_scale": 0}}]
)
async def test_a_stream_s_grammar_is_checked_once(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    """However many engine requests it makes; and it arrives, with the backend that the check chose."""
    from vllm.v1.structured_output import backend_xgrammar

    checked, sent = [], []
    check, add = backend_xgrammar.validate_xgrammar_grammar, ScriptedCore.add_request_async

    def counted(params: Any) -> None:
        checked.append(params)
        check(params)

    async def noted(self: ScriptedCore, request: Any) -> None:
        sent.append(MsgpackDecoder(EngineCoreRequest).decode(MsgpackEncoder().encode(request)).sampling_params)
        await add(self, request)

    monkeypatch.setattr(backend_xgrammar, "validate_xgrammar_grammar", counted)
    monkeypatch.setattr(ScriptedCore, "add_request_async", noted)
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    turn = {"role": "user", "content": "risky"}
    asked = {"model": "atlas", "messages": [turn], "stream": True, "structured_outputs": {"json": schema}, **more}
    response = await http.post(CHAT, json=asked)
    assert response.status_code == 200
    assert "error" not in response.text
    assert len(checked) == 1
    assert len(sent) == (1 if not more else 2)
    assert {params.structured_outputs._backend for params in sent} == {"xgrammar"}
    assert all(params.structured_outputs.json == schema for params in sent)
