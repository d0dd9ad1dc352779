"""The door over small apps, and over the route table of the real one: who comes in, what is refused, what it costs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from app.errors import Reason
from app.ingress.admission import DRAINING, Admission
from app.ingress.auth import ApiKeys
from app.ingress.body import PARSED
from app.ingress.middleware import PUBLIC, IngressMiddleware
from app.ingress.scope import CALLER
from app.protocols.adapters.registry import CHAT, GUARDED, MESSAGES
from app.protocols.limits import RISK, Limits
from app.server import docs, health, system
from app.server.routes import ALLOWED, OWN
from app.settings import RequestLimits
from app.telemetry.metrics import IngressMetrics
from guard.probe.bundle import Bundle

HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
GENERATING = frozenset({CHAT, MESSAGES}) | RISK


class House:
    """A door, and an app behind it that a test scripts."""

    def __init__(self, keys: str = "", requests: int = 8, capacity: int = 8, seconds: float = 5.0) -> None:
        self.registry = CollectorRegistry()
        self.admission = Admission(requests, capacity)
        self.seen: list[Scope] = []
        self.bodies: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.options: dict[str, Any] = {
            "keys": ApiKeys.parse(keys),
            "limits": Limits(
                RequestLimits(
                    max_messages=4,
                    max_parts=6,
                    max_tools=2,
                    max_grammar=40,
                    max_tokens=100,
                    max_choices=4,
                    max_risk_items=3,
                ),
                capacity=1 << 20,
            ),
            "admission": self.admission,
            "refused": IngressMetrics(self.admission, self.registry).refused,
            "working": GENERATING,
            "max_body_bytes": 1000,
            "body_seconds": seconds,
        }
        self.app = FastAPI()
        self.app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])
        self.app.user_middleware.append(Middleware(IngressMiddleware, **self.options))
        for path in (CHAT, MESSAGES, "/risk", "/tokenize"):
            self.app.post(path)(self.answer)
        self.app.get("/v1/models")(self.answer)
        self.app.get("/health")(self.answer)

    async def answer(self, request: Request) -> Any:
        self.seen.append(request.scope)
        self.bodies.append(await request.body())
        body = json.loads(self.bodies[-1]) if self.bodies[-1][:1] == b"{" else {}
        if body.get("stream"):
            return StreamingResponse(self.frames(), media_type="text/event-stream")
        if request.url.path in GENERATING:
            await self.gate.wait()
        if body.get("fail"):
            raise ZeroDivisionError
        return JSONResponse({"ok": True})

    async def frames(self) -> AsyncIterator[str]:
        yield "data: {}\n\n"
        await self.gate.wait()
        yield "data: [DONE]\n\n"

    @asynccontextmanager
    async def client(self, key: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as made:
            yield made

    def refused(self, reason: str) -> float:
        found = self.registry.get_sample_value("hguard_refused_total", {"reason": reason})
        assert found is not None
        return found

    @property
    def empty(self) -> bool:
        return (self.admission.requests, self.admission.answers) == (0, 0)


def refusal(response: httpx.Response, status: int, kind: str, param: str | None = None) -> str:
    """The message of a refusal in OpenAI's shape."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == (kind, param, status)
    return str(error["message"])


# -- keys over the route table -----------------------------------------------------------------------------------------


class Table:
    """vLLM's routes that the server keeps, and its own, behind the door; there is no engine."""

    def __init__(self, bundle: Bundle, root: str = "") -> None:
        from vllm.entrypoints.openai.api_server import build_app
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        from app.server.routes import close_unguarded
        from guard.compat import make_arg_parser

        args = make_arg_parser(FlexibleArgumentParser()).parse_args(["--root-path", root] if root else [])
        app: FastAPI = build_app(args, ("generate",))
        close_unguarded(app)
        house = House(keys="right-key,other-key")
        app.include_router(system.router(lambda: bundle, dict))
        app.include_router(health.router(house.admission, lambda: False))
        app.include_router(docs.router())
        for path in GUARDED | RISK:
            app.post(path)(house.answer)
        app.middleware_stack = None
        app.user_middleware.append(Middleware(IngressMiddleware, **house.options))
        app.state.engine_client = None
        self.app, self.root = app, root

    def requests(self) -> Iterator[tuple[str, str]]:
        """(method, path) of every route that there is."""
        for route in self.app.router.routes:
            path = str(getattr(route, "path", ""))
            for method in sorted(getattr(route, "methods", None) or {"GET", "POST"}):
                yield method, path
        for path in ALLOWED | OWN:
            yield "GET", path
            yield "POST", path


def variants(path: str) -> Iterator[str]:
    """The path as it is, and as somebody who wants in without a key may write it."""
    yield path
    yield path + "/"
    yield "/" + path
    yield path + "//"
    yield path.replace("/", "//")
    yield "/" + path[1:].replace("/", "%2F") if path.count("/") > 1 else "%2F".join(["", path[1:]])
    yield path.replace("/", "/%2e/", 1)
    yield path.replace("/", "/x/%2e%2e/", 1)
    yield path.upper() if path != "/" else "/INDEX"
    yield path + ";x"
    yield path + "%0A"
    yield path + "%00"
    yield path + "%20"
    for public in sorted(PUBLIC - {"/"}):
        yield f"{public}/..{path}"
        yield f"{public}/%2e%2e{path}"
        yield f"{public}{path}"
        yield f"{public}%2F..%2F{path[1:]}"


def as_routed(path: str, root: str) -> str:
    """What the server decodes the path to, without its prefix; whether it is public is a question of exactly that."""
    from urllib.parse import unquote

    plain = unquote(path)
    return plain[len(root) :] if root and plain.startswith(root + "/") else plain


class Wire:
    """Sends a path as it is written; any HTTP client would tidy it up first."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def status(self, method: str, path: str, headers: list[tuple[bytes, bytes]]) -> int:
        from urllib.parse import unquote

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"test"), (b"content-type", b"application/json"), *headers],
            "client": ("127.0.0.1", 1),
            "server": ("test", 80),
            "state": {},
        }
        sent: list[Message] = []
        told: list[Message] = [{"type": "http.request", "body": b"{}", "more_body": False}]

        async def receive() -> Message:
            if not told:  # a caller who stays
                await asyncio.Event().wait()
            return told.pop()

        async def send(message: Message) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        return int(sent[0]["status"])


@pytest.fixture(scope="module", params=["", "/models/a"], ids=["no prefix", "root path"])
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Table:
    from guard.probe.bundle import save_bundle
    from tests.conftest import make_card, make_tensors

    bundle = save_bundle(tmp_path_factory.mktemp("probe"), make_card(), make_tensors())
    return Table(bundle, request.param)


WRONG: list[list[tuple[bytes, bytes]]] = [[], [(b"authorization", b"Bearer right-ke")], [(b"x-api-key", b"")]]


@pytest.mark.parametrize("headers", WRONG, ids=["no key", "prefix of a key", "empty key"])
async def test_nothing_but_the_public_list_answers_without_a_key(
    table: Table, headers: list[tuple[bytes, bytes]]
) -> None:
    wire, asked, public = Wire(table.app), 0, set()
    for method, route in sorted(set(table.requests())):
        for prefix in {"", table.root, table.root * 2}:
            for path in variants(route):
                status = await wire.status(method, prefix + path, headers)
                asked += 1
                routed = as_routed(prefix + path, table.root)
                if status != 401:
                    assert method in ("GET", "HEAD"), (method, prefix + path, status)
                    named = routed if routed == "/" else routed.removesuffix("/")
                    assert named in PUBLIC, (method, prefix + path, status)
                    public.add(named)
    assert public == PUBLIC
    assert asked > 1000


async def test_with_a_key_each_route_is_there(table: Table) -> None:
    """The control of the test above: what it walked are routes, not typing errors."""
    wire = Wire(table.app)
    here = OWN - {"/v1/models/{model}"}  # asks vLLM, which is not there
    for method, route in sorted({one for one in table.requests() if one[0] == "GET" and one[1] in here}):
        status = await wire.status(method, table.root + route, [(b"x-api-key", b"other-key")])
        assert status in (200, 405), (method, route, status)
    assert await wire.status("POST", CHAT + "%0A", [(b"x-api-key", b"other-key")]) == 404


# -- keys --------------------------------------------------------------------------------------------------------------


async def test_a_refusal_says_how_to_come_in() -> None:
    house = House(keys="right-key")
    async with house.client() as http:
        response = await http.post(CHAT, json=HELLO)
        assert "Authorization: Bearer" in refusal(response, 401, "AuthenticationError")
        assert response.headers["www-authenticate"] == "Bearer"
        anthropic = (await http.post(MESSAGES, json=HELLO)).json()
        assert (anthropic["type"], anthropic["error"]["type"]) == ("error", "authentication_error")
    assert house.seen == []
    assert house.refused("unauthorized") == 2


async def test_the_inner_app_learns_which_key_but_not_the_key() -> None:
    house = House(keys="one-key,two-key")
    async with house.client("two-key") as http:
        assert (await http.post(CHAT, json=HELLO)).status_code == 200
    assert house.seen[0]["state"][CALLER] == 1
    assert house.seen[0]["state"][PARSED] == HELLO


async def test_another_origin_may_ask_and_may_read_the_refusal() -> None:
    house = House(keys="right-key")
    asks = {"origin": "http://else.example", "access-control-request-method": "POST"}
    async with house.client() as http:
        assert (await http.options(CHAT, headers=asks)).status_code == 200
        response = await http.post(CHAT, json=HELLO, headers={"origin": "http://else.example"})
        assert response.headers["access-control-allow-origin"] == "*"
        refusal(response, 401, "AuthenticationError")
        assert (await http.options(CHAT)).status_code == 401
        assert (await http.options(CHAT, headers={"access-control-request-method": "POST"})).status_code == 401


@pytest.mark.parametrize("keys", ["", "right-key"])
async def test_websockets_are_refused(keys: str) -> None:
    house, sent = House(keys=keys), []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/health", "headers": [(b"x-api-key", b"right-key")]}
    await IngressMiddleware(house.app, **house.options)(scope, receive, send)
    assert [(one["type"], one["code"]) for one in sent] == [("websocket.close", 1008)]
    assert house.seen == []


# -- bodies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, "/risk", "/tokenize"])
async def test_a_body_too_large_is_not_parsed(path: str) -> None:
    house = House()
    async with house.client() as http:
        refusal(await http.post(path, content=b"{" * 1001), 413, "BadRequestError", "body")
        assert (await http.post("/tokenize", content=b"x" * 1000)).status_code == 200

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 100

        refusal(await http.post(path, content=endless()), 413, "BadRequestError", "body")
    assert house.refused("too_large") == 2
    assert house.empty


async def test_a_slow_body() -> None:
    house = House(seconds=0.1)

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    async with house.client() as http:
        response = await http.post(CHAT, content=slow())
    refusal(response, 408, "RequestTimeoutError", "body")
    assert response.headers["connection"] == "close"
    assert house.refused("slow_body") == 1
    assert house.empty


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 900, b'{"n": 1' + b"0" * 900 + b"}"])
async def test_what_is_no_json(content: bytes) -> None:
    house = House()
    async with house.client() as http:
        response = await http.post(CHAT, content=content)
    assert response.status_code == 400
    assert house.seen == []
    assert house.empty


async def test_the_body_arrives_as_it_was_and_then_the_disconnect() -> None:
    house, got = House(), []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        got.extend([await receive(), await receive()])

    messages = iter(
        [
            {"type": "http.request", "body": b'{"messages"', "more_body": True},
            {"type": "http.request", "body": b": []}", "more_body": False},
            {"type": "http.disconnect"},
        ]
    )

    async def receive() -> Message:
        return next(messages)

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
    await IngressMiddleware(inner, **house.options)(scope, receive, lambda message: asyncio.sleep(0))
    assert got == [
        {"type": "http.request", "body": b'{"messages": []}', "more_body": False},
        {"type": "http.disconnect"},
    ]
    assert house.empty


@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH", "TRACE", "SEARCH", "GET", "HEAD", "OPTIONS"])
async def test_no_other_method_s_body_is_read(method: str) -> None:
    """Nor does it take a place: the house is full."""
    house, sent = House(requests=1), []

    async def receive() -> Message:
        raise AssertionError("the body was asked for")

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": CHAT, "headers": [], "query_string": b"", "state": {}}
    with house.admission.admit(None):
        await house.app(scope, receive, send)
    assert sent[0]["status"] == 405
    assert dict(sent[0]["headers"])[b"allow"] == b"POST"
    assert house.seen == []


async def test_a_caller_who_hangs_up_while_sending() -> None:
    house, sent = House(), []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
    await IngressMiddleware(house.app, **house.options)(
        scope, receive, lambda message: asyncio.sleep(0, sent.append(message))
    )
    assert sent == []
    assert house.empty


# -- places ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "param", "status"),
    [
        (CHAT, {"messages": [{}] * 5}, "messages", 400),
        (CHAT, {**HELLO, "max_tokens": 101}, "max_tokens", 400),
        (CHAT, {**HELLO, "n": 5}, "n", 400),
        (MESSAGES, {**HELLO, "max_tokens": 101}, "max_tokens", 400),
        ("/risk", [{}] * 4, None, 413),
    ],
)
async def test_a_body_that_asks_for_too_much(path: str, body: Any, param: str | None, status: int) -> None:
    house = House()
    async with house.client() as http:
        response = await http.post(path, json=body)
    refusal(response, status, "invalid_request_error" if path == MESSAGES else "BadRequestError", param)
    assert response.json().get("type") == ("error" if path == MESSAGES else None)
    assert house.refused("invalid_limits") == 1
    assert house.seen == []
    assert house.empty


async def waiting(house: House, count: int) -> None:
    async with asyncio.timeout(60):
        while len(house.seen) < count:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_full_house_is_seen_before_the_body_is_read() -> None:
    house = House(requests=2, capacity=8)
    house.gate.clear()
    async with house.client() as http:
        inside = [asyncio.create_task(http.post(CHAT, json=HELLO)) for _ in range(2)]
        await waiting(house, 2)

        async def unread() -> AsyncIterator[bytes]:
            raise AssertionError("nobody should ask for it")
            yield b""

        response = await http.post(CHAT, content=unread())
        refusal(response, 429, "RateLimitError")
        assert int(response.headers["retry-after"]) >= 1
        assert (await http.post("/tokenize", content=b"{}")).status_code == 200, "takes no place"
        assert (await http.get("/v1/models")).status_code == 200
        assert house.registry.get_sample_value("hguard_requests_in_flight") == 2
        house.gate.set()
        assert [one.status_code for one in await asyncio.gather(*inside)] == [200, 200]
        assert (await http.post(CHAT, json=HELLO)).status_code == 200
    assert house.refused("too_many_requests") == 1
    assert house.empty


async def test_answers_fill_the_queue() -> None:
    house = House(capacity=5)
    house.gate.clear()
    async with house.client() as http:
        inside = [asyncio.create_task(http.post(CHAT, json={**HELLO, "n": 4}))]
        await waiting(house, 1)
        assert house.registry.get_sample_value("hguard_answers_in_flight") == 4
        response = await http.post(CHAT, json={**HELLO, "n": 2})
        refusal(response, 503, "ServiceUnavailableError")
        assert int(response.headers["retry-after"]) >= 1
        assert "connection" not in response.headers
        inside.append(asyncio.create_task(http.post(CHAT, json=HELLO)))
        await waiting(house, 2)
        house.gate.set()
        assert [one.status_code for one in await asyncio.gather(*inside)] == [200, 200]
    assert house.refused("queue_full") == 1
    assert house.empty


async def test_each_key_has_its_own_places() -> None:
    house = House(keys="one-key,two-key", requests=1)
    house.gate.clear()
    async with house.client("one-key") as one, house.client("two-key") as two:
        inside = [asyncio.create_task(one.post(CHAT, json=HELLO))]
        await waiting(house, 1)
        refusal(await one.post(CHAT, json=HELLO), 429, "RateLimitError")
        inside.append(asyncio.create_task(two.post(CHAT, json=HELLO)))
        await waiting(house, 2)
        house.gate.set()
        assert [reply.status_code for reply in await asyncio.gather(*inside)] == [200, 200]


async def test_places_are_given_back_after_an_error_and_a_cancelled_call() -> None:
    house = House()
    async with house.client() as http:
        assert (await http.post(CHAT, json={**HELLO, "fail": True})).status_code == 500
        assert house.empty
        house.gate.clear()
        call = asyncio.create_task(http.post(CHAT, json=HELLO))
        await waiting(house, 2)
        assert house.admission.requests == 1
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    assert house.empty


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_draining_lets_out_but_not_in() -> None:
    house = House(keys="right-key")
    house.gate.clear()
    async with house.client("right-key") as http:
        inside = asyncio.create_task(http.post(CHAT, json=HELLO))
        await waiting(house, 1)
        house.admission.close(DRAINING)
        for late in (await http.post(CHAT, json=HELLO), await http.get("/v1/models"), await http.post("/tokenize")):
            assert "server is shutting down" in refusal(late, 503, "ServiceUnavailableError")
            assert (late.headers["retry-after"], late.headers["connection"]) == ("1", "close")
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/v1/models", headers={"authorization": "Bearer wrong"})).status_code == 401
        house.gate.set()
        assert (await inside).status_code == 200
    assert house.refused("draining") == 3
    assert house.registry.get_sample_value("hguard_draining") == 1


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_what_is_cut_short_is_told_so(path: str) -> None:
    house = House()
    house.gate.clear()
    async with house.client() as http:
        whole = asyncio.create_task(http.post(path, json=HELLO))
        streamed = asyncio.create_task(http.post(path, json={**HELLO, "stream": True}))
        await waiting(house, 2)
        await asyncio.sleep(0.01)
        house.admission.cut_short()
        kind = "overloaded_error" if path == MESSAGES else "ServiceUnavailableError"
        assert "ended before" in refusal(await whole, 503, kind)
        events = (await streamed).text.split("\n\n")
    assert events[0] == "data: {}"
    assert events[-1] == ""
    name, _, data = events[1].rpartition("data: ")
    assert name == ("event: error\n" if path == MESSAGES else "")
    assert json.loads(data)["error"]["code"] == 503
    assert "[DONE]" not in events
    assert house.empty


async def test_ready_and_live() -> None:
    house, dead = House(), [False]
    house.app.include_router(health.router(house.admission, lambda: dead[0]))
    async with house.client() as http:

        async def asked() -> list[Any]:
            replies = [await http.get(path) for path in ("/live", "/ready")]
            return [(one.status_code, one.json()["status"]) for one in replies]

        assert await asked() == [(200, "live"), (200, "ready")]
        house.admission.close(DRAINING)
        assert await asked() == [(200, "live"), (503, "draining")]
        dead[0] = True
        assert await asked() == [(200, "live"), (503, "engine dead")]


def test_every_series_is_there_at_zero() -> None:
    registry = CollectorRegistry()
    IngressMetrics(Admission(1, 1), registry)
    for reason in Reason:
        assert registry.get_sample_value("hguard_refused_total", {"reason": reason.value}) == 0
    for name in ("hguard_requests_in_flight", "hguard_answers_in_flight", "hguard_draining"):
        assert registry.get_sample_value(name) == 0
