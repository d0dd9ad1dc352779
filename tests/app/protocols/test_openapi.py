"""Every answer of the real app is as its OpenAPI document says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from jsonschema import Draft202012Validator, ValidationError
from starlette.routing import Match

from app.ingress.auth import ApiKeys
from app.protocols.adapters.registry import ADAPTERS
from app.protocols.limits import RISK
from app.protocols.options import GuardOptions
from app.protocols.routes import ParsedRoute
from app.server.routes import OWN
from app.settings import Settings
from tests.scripted.server import scripted_app

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK: dict[str, Any] = {
    "/v1/chat/completions": lambda text: {"messages": [{"role": "user", "content": text}]},
    "/v1/completions": lambda text: {"prompt": text, "max_tokens": 20},
    "/v1/responses": lambda text: {"input": text},
    "/v1/messages": lambda text: {"messages": [{"role": "user", "content": text}], "max_tokens": 20},
}
# By name: what is asked, with which options, and a part of what must come of it.
OUTCOMES: dict[str, tuple[str, dict[str, Any] | None, dict[str, Any]]] = {
    "default": ("safe", None, {"action": "pass"}),
    "off": ("safe", {"mode": "off"}, {"type": "not_scored", "reason": "off"}),
    "flagged": ("risky", {"mode": "flag"}, {"action": "flagged"}),
    "abstained": ("risky", {"mode": "abstain"}, {"action": "abstained"}),
    "message": ("risky", {"mode": "abstain", "fallback": "message"}, {"action": "abstained"}),
    "shown in part": ("rises", {"mode": "abstain", "hold": "none"}, {"action": "abstained"}),
    "retried": ("risky", {"mode": "abstain", "retry_scale": 0.0}, {"action": "pass", "first_risk": 0.98}),
    "retried in vain": ("risky", {"mode": "abstain", "retry_scale": 1.0}, {"action": "abstained", "first_risk": 0.98}),
    "prompt_refused": (
        "prompt_risk",
        {"mode": "abstain", "prompt_check": True},
        {"prompt_refused": True, "action": "abstained"},
    ),
    "tokens": ("rises unicode", {"tokens": True}, {"tokens": True}),
    "not scored": ("nan", None, {"type": "not_scored", "reason": "not_finite"}),
    "not scored, withheld": ("missing", {"mode": "abstain"}, {"type": "not_scored", "action": "abstained"}),
    "scaled": ("risky", {"scale": 0.5, "target_fpr": 0.1}, {"action": "pass"}),
}


class Described:
    """The app's document, and what conforms to it."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document

    def schema(self, path: str, method: str, status: int, kind: str) -> Any:
        return self.document["paths"][path][method]["responses"][str(status)]["content"][kind].get("schema")

    def asked(self, path: str) -> Any:
        return self.document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]

    def validate(self, schema: Any, content: Any) -> None:
        Draft202012Validator({**schema, "components": self.document["components"]}).validate(content)

    def check(self, response: httpx.Response) -> Any:
        """What the response says; it must be in the document."""
        request = response.request
        kind = response.headers["content-type"].partition(";")[0]
        schema = self.schema(request.url.path, request.method.lower(), response.status_code, kind)
        if kind != "application/json":
            return response.text
        self.validate(schema, response.json())
        return response.json()

    @property
    def block(self) -> Any:
        return self.document["components"]["schemas"]["RiskReply"]["properties"]["hallucination"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app() -> AsyncIterator[FastAPI]:
    async with scripted_app(Settings(loosest_mode="off")) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://scripted") as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def described(http: httpx.AsyncClient) -> Described:
    return Described((await http.get("/openapi.json")).json())


def asking(path: str, text: str, options: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"model": "atlas", **ASK[path](text), **({} if options is None else {"hallucination": options}), **more}


def blocks(content: Any) -> Iterator[dict[str, Any]]:
    """The ``hallucination`` objects anywhere in it."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from [value] if name == "hallucination" else blocks(value)
    elif isinstance(content, list):
        for value in content:
            yield from blocks(value)


def require(block: dict[str, Any], expected: dict[str, Any]) -> None:
    found = {**block, **block.get("results", [{}])[0]}
    for name, value in expected.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, abs=1e-6)
        else:
            assert found[name] == value or (value is True and found[name])


async def test_the_document_is_valid_and_says_what_is_there(described: Described) -> None:
    document = described.document
    for name, schema in document["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert "ValidationError" not in name
    assert OWN - {"/", "/docs"} <= set(document["paths"]), "all but the pages"
    options = document["components"]["schemas"]["HallucinationOptions"]
    assert set(options["properties"]) == set(GuardOptions.model_fields)
    for path in (*ADAPTERS, "/risk", "/v1/risk"):
        replies = document["paths"][path]["post"]["responses"]
        assert set(replies) >= {"200", "400", "401", "404", "408", "413", "429", "503"}
        assert "422" not in replies


@pytest.mark.parametrize("path", [*ADAPTERS, *sorted(RISK)])
async def test_each_route_is_there_once(app: FastAPI, path: str) -> None:
    """And it is ours: none of vLLM's answers in its place."""
    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    found = [route for route in app.router.routes if route.matches(dict(scope))[0] is not Match.NONE]
    assert [type(route) for route in found] == [ParsedRoute]


@pytest.mark.parametrize("path", ASK)
@pytest.mark.parametrize("outcome", OUTCOMES)
async def test_a_whole_answer(http: httpx.AsyncClient, described: Described, path: str, outcome: str) -> None:
    text, options, expected = OUTCOMES[outcome]
    body = asking(path, text, options)
    described.validate(described.asked(path), body)
    reply = described.check(await http.post(path, json=body))
    require(reply["hallucination"], expected)


@pytest.mark.parametrize("path", ASK)
@pytest.mark.parametrize("outcome", OUTCOMES)
async def test_a_stream(http: httpx.AsyncClient, described: Described, path: str, outcome: str) -> None:
    text, options, expected = OUTCOMES[outcome]
    asked = {"stream_options": {"include_usage": True}} if "completions" in path else {}
    text = described.check(await http.post(path, json=asking(path, text, options, stream=True, **asked)))
    assert isinstance(text, str)
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    found = [block for one in data for block in blocks(json.loads(one))]
    assert len(found) == (2 if asked else 1)
    for block in found:
        described.validate(described.block, block)
        require(block, expected)


async def test_several_answers_and_logprobs(http: httpx.AsyncClient, described: Described) -> None:
    chat, plain = "/v1/chat/completions", "/v1/completions"
    options = {"mode": "abstain", "tokens": True}
    more = {"n": 3, "logprobs": True, "top_logprobs": 2, "return_token_ids": True}
    reply = described.check(await http.post(chat, json=asking(chat, "second risky", options, **more)))
    assert [one["action"] for one in reply["hallucination"]["results"]] == ["pass", "abstained", "pass"]
    assert "risk" in reply["choices"][0]["logprobs"]["content"][0]
    body = asking(plain, "safe", options, logprobs=2, echo=True, n=2) | {"prompt": ["safe", "risky", "nan"]}
    reply = described.check(await http.post(plain, json=body))
    assert [one["risk"] is None for one in reply["hallucination"]["results"]] == [False] * 4 + [True] * 2
    assert reply["hallucination"]["results"][4]["reason"] == "not_finite"


@pytest.mark.parametrize("path", ["/risk", "/v1/risk"])
async def test_given_text(http: httpx.AsyncClient, described: Described, path: str) -> None:
    texts = ("It is safe.", "That is risky.", "It is nan, I say.", "It is missing, I say.", "unicode: Żary 🇯🇵")
    items = [
        {"model": "atlas", "prompt": "Where is Kandy?", "response": text, "hallucination": {"mode": mode}}
        for text in texts
        for mode in ("score", "flag", "abstain")
    ]
    reply = described.check(await http.post(path, json=items))
    found = [item["hallucination"] for item in reply["data"]]
    assert {block["type"] for block in found} == {"hallucination_results", "not_scored"}
    chat = {"model": "atlas", "messages": [{"role": "user", "content": [{"type": "text", "text": "Where?"}]}]}
    for options in ({}, {"hallucination": {"tokens": False, "threshold": 0.5}}):
        one = {**chat, "response": "It is risky.", **options}
        described.validate(described.asked(path), one)
        require(described.check(await http.post(path, json=one))["hallucination"], {"risk": 0.98})


async def test_what_the_schema_of_a_request_refuses(described: Described) -> None:
    item = {"model": "atlas", "response": "x", "prompt": "y"}
    wrong = [
        ("RiskItem", {**item, "messages": [{"role": "user"}]}),
        ("RiskItem", {**item, "prompt": None}),
        ("RiskItem", {**item, "hallucination": {"mode": "maybe"}}),
        ("HallucinationOptions", {"threshold": 0.5, "target_fpr": 0.05}),
        ("HallucinationOptions", {"treshold": 0.5}),
    ]
    for name, content in wrong:
        with pytest.raises(ValidationError):
            described.validate({"$ref": f"#/components/schemas/{name}"}, content)


async def test_every_option_may_be_null(described: Described) -> None:
    described.validate({"$ref": "#/components/schemas/HallucinationOptions"}, dict.fromkeys(GuardOptions.model_fields))


@pytest.mark.parametrize("path", [*ASK, "/risk"])
async def test_refusals(http: httpx.AsyncClient, described: Described, path: str) -> None:
    body = {"model": "atlas", "prompt": "x", "response": "y"} if path == "/risk" else asking(path, "x")
    sent: list[tuple[int, dict[str, Any]]] = [
        (400, {"content": b"{"}),
        (400, {"json": {}}),
        (400, {"json": {**body, "hallucination": {"mode": "maybe"}}}),
        (404, {"json": {**body, "model": "other"}}),
        (413, {"content": b" " * (3 << 20)}),
        (415, {"content": b"{}", "headers": {"content-encoding": "gzip"}}),
    ]
    for status, content in sent:
        response = await http.post(path, **content)
        assert response.status_code == status
        described.check(response)


@pytest.mark.parametrize("path", ["/v1/probe", "/info", "/live", "/ready", "/v1/models", "/version"])
async def test_what_generates_nothing(http: httpx.AsyncClient, described: Described, path: str) -> None:
    response = await http.get(path)
    assert response.status_code == 200
    described.check(response)


async def test_keys_and_a_full_house() -> None:
    settings = Settings(api_keys=ApiKeys(["secret"]), max_concurrent_requests=1, max_queue=0)
    async with scripted_app(settings, extra=["--max-num-seqs=2"]) as app:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://scripted") as http:
            key = {"authorization": "Bearer secret"}
            described = Described((await http.get("/openapi.json", headers=key)).json())
            for path, status in (("/v1/messages", 401), ("/v1/models", 401), ("/risk", 401)):
                response = await http.request("GET" if path == "/v1/models" else "POST", path)
                assert response.status_code == status
                described.check(response)
                operation = described.document["paths"][path]["get" if path == "/v1/models" else "post"]
                assert operation["security"] == [{"bearer": []}, {"key": []}]
            assert "security" not in described.document["paths"]["/health"]["get"]
            admission = app.state.admission
            for status in (429, 503):
                with admission.admit(0 if status == 429 else 1, 1 if status == 429 else admission.capacity):
                    response = await http.post("/v1/messages", json=asking("/v1/messages", "x"), headers=key)
                    assert response.status_code == status
                    described.check(response)
