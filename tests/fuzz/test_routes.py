"""Every route of the schema, asked with what fits it, with what does not, and with what almost does.

Whatever comes, the answer is none of a broken server, and is what the schema says. All that is wrong is gathered before
a test fails, so that one run shows it all. HGUARD_FUZZ_EXAMPLES: how many requests of each kind go to a route.
HGUARD_FUZZ_ENGINE=atlas: a real engine answers.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import given, reject
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core.errors import UnsupportedSchema
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks

from app.protocols.adapters.registry import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from tests.engine.server import Server
from tests.fuzz.values import EDGES, EXAMPLES, any_json, deep, many
from tests.scripted.server import ForkedScriptedServer

ARGUMENTS = ["--max-tokens=48", "--max-choices=8", "--max-body-bytes=262144", "--loosest-mode=off"]
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
TURN = {"role": "user", "content": "Where is Kandy?"}
# By route: a request that is answered.
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"model": "atlas", "messages": [TURN]},
    COMPLETIONS: {"model": "atlas", "prompt": "Where is Kandy?", "max_tokens": 12},
    RESPONSES: {"model": "atlas", "input": "Where is Kandy?"},
    MESSAGES: {"model": "atlas", "messages": [TURN], "max_tokens": 12},
    f"{MESSAGES}/count_tokens": {"model": "atlas", "messages": [TURN]},
    "/risk": {"model": "atlas", "messages": [TURN], "response": "It is in Japan."},
    "/v1/risk": {"model": "atlas", "prompt": "Where is Kandy?", "response": "It is in Japan."},
    "/tokenize": {"model": "atlas", "prompt": "Where is Kandy?"},
    "/detokenize": {"model": "atlas", "tokens": [1, 2, 3]},
}
GENERATING = frozenset({CHAT, COMPLETIONS, RESPONSES, MESSAGES})  # the others know no stream
# Places in a request where anything may stand, as far as its schema goes.
FREE: list[Callable[[Any], dict[str, Any]]] = [
    lambda value: {"tools": [{"type": "function", "function": {"name": "f", "parameters": value}}]},
    lambda value: {"tools": [{"type": "function", "name": "f", "parameters": value}]},
    lambda value: {"tools": [{"name": "f", "input_schema": value}]},
    lambda value: {"tools": [{"type": "function", "function": {"name": value}}], "tool_choice": "auto"},
    lambda value: {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}},
    lambda value: {"structured_outputs": {"json": value}},
    lambda value: {"structured_outputs": {"regex": value}},
    lambda value: {"structured_outputs": {"grammar": value}},
    lambda value: {"text": {"format": {"type": "json_schema", "name": "x", "schema": value}}},
    lambda value: {"metadata": {"a": value}},
    lambda value: {"chat_template_kwargs": {"a": value}},
    lambda value: {"chat_template": value},
    lambda value: {"logit_bias": {"1": value}},
    lambda value: {"logit_bias": {str(value): 1.0}},
    lambda value: {"vllm_xargs": {"a": value}},
    lambda value: {"vllm_xargs": {"hguard": value}},
    lambda value: {"messages": [{"role": "user", "content": value}]},
    lambda value: {"messages": [{"role": value, "content": "x"}]},
    lambda value: {"messages": [{"role": "user", "content": [{"type": "text", "text": value}]}]},
    lambda value: {"messages": [{"role": "assistant", "tool_calls": value}]},
    lambda value: {"input": [{"role": "user", "content": value}]},
    lambda value: {"prompt": [value]},
    lambda value: {"prompt": [[value]]},
    lambda value: {"hallucination": {"threshold": value}},
    lambda value: {"stream": True, "stream_options": {"include_usage": value}},
    lambda value: {"stream": True, "stop": [value]},
]
# What an engine could fall over, once it is past the checks before it.
BOLD: list[dict[str, Any]] = [
    *({"min_tokens": 4, "stop_token_ids": [one]} for one in (-1, 5, 5000, 2**31, 2**63)),
    *({"allowed_token_ids": ids} for ids in ([], [-1], [5], [5000], [2**31], list(range(3000)))),
    *(
        {"logit_bias": bias}
        for bias in ({"5000": 1}, {"-1": 1}, {"5": 1e308}, {"5": float("nan")}, {"5": float("-inf")})
    ),
    *({"logprobs": True, "top_logprobs": count} for count in (-1, 20, 2047, 5000)),
    *({"logprobs": count} for count in (-1, 0, 20, 5000)),
    *({"logprobs": True, "logprob_token_ids": ids} for ids in ([], [-1], [5], [5000], [2**40])),
    *({"prompt_logprobs": count} for count in (-1, 0, 20, 5000)),
    *({"truncate_prompt_tokens": count} for count in (-1, 0, 1, 5000, 2**62)),
    *({"temperature": heat} for heat in (1e-300, 1e-6, 1e30, 1e308)),
    *({"temperature": 1.0, "top_p": share} for share in (1e-300, 1e-9, 1.0)),
    *({"temperature": 1.0, "min_p": share, "top_k": 1} for share in (0.0, 1.0)),
    *({"temperature": 1.0, "top_k": count} for count in (-1, 0, 1, 2**31, 2**62, 2**63)),
    *({"repetition_penalty": value} for value in (1e-300, 1e-9, 1e30, 1e308)),
    *({"seed": seed, "temperature": 1.0} for seed in (-1, 2**31, 2**63 - 1, -(2**63))),
    *({"bad_words": words} for words in ([""], [" "], ["It"], ["\0"], ["x" * 2000], ["It is"] * 300)),
    *({"stop": stop} for stop in ("", [""], ["\0"], ["x"] * 500, "x" * 5000)),
    *({"structured_outputs": one} for one in ({"json": {}}, {"regex": "("}, {"regex": "(a*)*b"}, {"choice": []})),
    *(
        {"structured_outputs": one}
        for one in ({"grammar": "root ::= "}, {"json_object": True}, {"structural_tag": "x"})
    ),
    *({"prompt": prompt} for prompt in ([], [[]], [-1], [5000], [2**31], [2**63], ["", "x"], "", "\0", "x " * 600)),
    *({"max_tokens": count} for count in (0, 1, -1)),
    *({"echo": True, "max_tokens": 0, "logprobs": 1}, {"echo": True, "prompt": ["a", "b"], "n": 2}, {"best_of": 3}),
    *({"n": 8, "temperature": 1.0, "stream": True}, {"n": 8, "temperature": 0.0}, {"n": 0}, {"n": 2**63}),
    *({"priority": value} for value in (-(2**63), 2**63 - 1)),
    *({"stream_interval": value, "stream": True} for value in (-1, 0, 1, 2**31)),
    *({"repetition_detection": one} for one in ({}, {"max_pattern_size": 2**40, "min_count": 2}, {"min_count": -1})),
    *({"kv_transfer_params": {"do_remote_decode": True}}, {"ec_transfer_params": {"x": 1}}, {"watermarking": {}}),
    *({"thinking_token_budget": count} for count in (-1, 0, 2**40)),
    *({"prompt_embeds": "AAAA"}, {"mm_processor_kwargs": {"x": 1}}, {"cache_salt": "x" * 9999}, {"cache_salt": ""}),
    *({"chat_template": "{% for i in range(10**9) %}{% endfor %}"}, {"documents": [{"a": "b"}]}),
    *({"chat_template_kwargs": one} for one in ({"chat_template": "x"}, {"tokenize": True}, {"messages": []})),
    *({"tools": [{"type": "function"}], "tool_choice": one} for one in ("auto", {"type": "function", "function": {}})),
    {"tools": [{}], "tool_choice": {"type": "function", "function": {"name": "f"}}},
    *(
        {"hallucination": {"mode": "abstain", "retry_scale": 0.0, "threshold": 0.0, "hold": hold}}
        for hold in ("none", "window")
    ),
    *({"hallucination": {"scale": scale}} for scale in (0, 1e-300, 3)),
    *({"request_id": name} for name in ("", "x" * 9999, "canary", "0_x", "\n")),
    *({"user": name, "session_id": name} for name in ("", "x" * 9999)),
    *(
        {"include_stop_str_in_output": True, "stop": ["is"]},
        {"add_generation_prompt": False, "continue_final_message": True},
    ),
    *({"background": True}, {"store": True}, {"previous_response_id": "x"}, {"max_tool_calls": 0}, {"include": ["x"]}),
    *({"enable_response_messages": True}, {"truncation": "auto"}, {"text": {"format": {"type": "json_object"}}}),
    *({"system": [{"type": "text", "text": "x"}]}, {"stop_sequences": [""]}, {"thinking": {"type": "enabled"}}),
]
READ = ["/load", "/version", "/health", "/metrics", "/v1/models", "/ping", "/v1/probe", "/info", "/live", "/ready"]
SECONDS = 60


class Trouble:
    """What was wrong, one example of each kind."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def note(self, kind: str, what: Any) -> None:
        text = repr(what)
        if kind not in self.found:
            print(f"{kind}\n    {text[:3000]}", flush=True)  # a long run shows at once what it finds
        if kind not in self.found or len(text) < len(self.found[kind]):
            self.found[kind] = text

    def __str__(self) -> str:
        return "\n".join(f"{kind}\n    {what[:3000]}" for kind, what in sorted(self.found.items()))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    real = os.environ.get("HGUARD_FUZZ_ENGINE") == "atlas"
    running = Server(ARGUMENTS) if real else ForkedScriptedServer(ARGUMENTS)
    yield running
    assert running.process.poll() is None, "the server is gone:\n" + "".join(running.lines[-40:])
    assert running.stop(signal.SIGTERM) == 0


@pytest.fixture(scope="module")
def document(server: Server) -> Any:
    return httpx.get(f"{server.url}/openapi.json", timeout=SECONDS).json()


@pytest.fixture(scope="module")
def schema(server: Server, document: Any) -> Any:
    loaded = schemathesis.openapi.from_dict(document)
    loaded.config.update(base_url=server.url)
    return loaded


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as made:
        made.headers["connection"] = "close"  # between two requests the server may tire of an idle connection
        yield made


def examine(case: Any, session: requests.Session, trouble: Trouble) -> None:
    """Send one case, and note all that is wrong with the answer."""
    new = sorted(set(case.body) - set(GOOD.get(case.path, ()))) if isinstance(case.body, dict) else []
    where = f"{case.method} {case.path}" + (f" {new}" if len(new) == 1 else "")
    try:
        if isinstance(case.body, dict):  # as it is: no client of ours would send NaN
            url, data = case.operation.base_url + case.path, json.dumps(case.body)
            response = session.post(url, data, headers={"content-type": "application/json"}, timeout=SECONDS)
        else:
            response = case.call(session=session, timeout=SECONDS)
    except (requests.RequestException, TimeoutError) as error:
        trouble.note(f"{where}: no answer: {type(error).__name__}", case.body)
        return
    try:
        case.validate_response(response, checks=CHECKS)
    except FailureGroup as group:
        for failure in group.exceptions:
            trouble.note(
                f"{where}: {response.status_code} {failure.title}", (response.text[:300], str(failure), case.body)
            )
    if str(response.headers.get("content-type")).find("text/event-stream") >= 0:
        for one in stream_errors(response.text):
            trouble.note(f"{where}: a stream says {one[:80]}", (one, case.body))


def stream_errors(text: str) -> Iterator[str]:
    """What a stream says of a broken server, or says that no client can read."""
    for line in text.splitlines():
        if line.startswith("data: ") and line != "data: [DONE]":
            try:
                content = json.loads(line.removeprefix("data: "))
            except ValueError:
                yield f"what is no JSON: {line}"
                continue
            error = content.get("error") or (content if content.get("type") == "error" else None)
            if error and (error.get("code") in (500, "server_error") or error.get("type") == "api_error"):
                yield json.dumps(content)


@st.composite
def drawn(draw: st.DrawFn, cases: st.SearchStrategy[Any]) -> Any:
    """Without those that schemathesis finds, as it draws, that it cannot make of this schema."""
    try:
        return draw(cases)
    except UnsupportedSchema:
        reject()


def almost_right(document: Any, operation: Any, path: str) -> st.SearchStrategy[Any]:
    """Requests that are right but for a few fields, taken from the schema or from nowhere."""
    good = GOOD[path]
    names = st.sampled_from(known_fields(document, path)) | st.text(max_size=6)

    @st.composite
    def almost(draw: st.DrawFn) -> Any:
        case = draw(drawn(operation.as_strategy(generation_mode=GenerationMode.POSITIVE)))
        offered = case.body if isinstance(case.body, dict) else {}
        body = dict(good)
        for name in draw(st.lists(st.sampled_from(sorted(offered)), max_size=4)) if offered else ():
            body[name] = offered[name]
        for name in draw(st.lists(names, max_size=2)):
            body[name] = draw(any_json())
        for name in ("model", *good):  # most of what is needed stays as it should be
            if draw(st.integers(0, 9)):
                body[name] = good.get(name)
        case.body = body
        case.media_type = "application/json"
        return case

    return almost()


def known_fields(document: Any, path: str) -> list[str]:
    """The names in the request's schema."""
    pending = [document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]]
    found: set[str] = set()
    for one in pending:
        found |= set(one.get("properties", ()))
        pending += one.get("anyOf", [])
        pending += [document["components"]["schemas"][one["$ref"].rpartition("/")[2]]] if "$ref" in one else []
    return sorted(found)


@pytest.mark.parametrize("kind", ["right", "wrong", "almost"])
@pytest.mark.parametrize("path", GOOD)
def test_what_is_sent(document: Any, schema: Any, session: requests.Session, path: str, kind: str) -> None:
    operation, trouble = schema[path]["POST"], Trouble()
    if kind == "almost":
        cases = almost_right(document, operation, path)
    else:
        mode = GenerationMode.POSITIVE if kind == "right" else GenerationMode.NEGATIVE
        cases = drawn(operation.as_strategy(generation_mode=mode))

    @many(6)
    @given(cases)
    def ask(case: Any) -> None:
        examine(case, session, trouble)

    ask()
    assert not trouble.found, str(trouble)


@pytest.mark.parametrize("path", GOOD)
def test_each_field_at_each_edge(document: Any, schema: Any, session: requests.Session, path: str) -> None:
    trouble, operation = Trouble(), schema[path]["POST"]
    values = [*EDGES, "\ud800" * 3, ["\ud800"], {"\ud800": "\ud800"}, deep(300), deep(300, "dict"), "x" * 70_000]
    bodies = [{**GOOD[path], name: value} for name in known_fields(document, path) for value in values]
    bodies += [{**GOOD[path], **free(value)} for value in values for free in FREE]
    for body in bodies if EXAMPLES else bodies[:: len(bodies) // 30]:
        examine(operation.Case(body=body, media_type="application/json"), session, trouble)
    assert not trouble.found, str(trouble)


@pytest.mark.parametrize("path", GOOD)
def test_what_an_engine_could_fall_over(schema: Any, session: requests.Session, server: Server, path: str) -> None:
    trouble, operation = Trouble(), schema[path]["POST"]
    for bold in BOLD:
        for stream in (False, True) if path in GENERATING else (False,):
            body = {**GOOD[path], **bold, **({"stream": True} if stream else {})}
            examine(operation.Case(body=body, media_type="application/json"), session, trouble)
            assert server.process.poll() is None, f"the server fell over {body}"
    examine(operation.Case(body=GOOD[path], media_type="application/json"), session, trouble)
    assert not trouble.found, str(trouble)


@pytest.mark.parametrize("path", READ)
def test_what_is_read(schema: Any, session: requests.Session, path: str) -> None:
    trouble = Trouble()
    examine(schema[path]["GET"].Case(), session, trouble)
    assert not trouble.found, str(trouble)


@pytest.mark.parametrize("path", GOOD)
def test_what_is_no_request(server: Server, path: str) -> None:
    good = json.dumps(GOOD[path]).encode()
    bodies: list[bytes] = [b"", b" ", b"{", b"[]", b"null", b"\xff\xfe{", b'"x"', b"1e999", b"{}\x00", b"9" * 5000]
    bodies += [b"[" * 100_000, json.dumps(deep(900)).encode()]
    bodies += [json.dumps({**GOOD[path], "x": deep(900, "dict"), "\ud800": "\ud800"}).encode()]
    bodies += [json.dumps(GOOD[path]).encode("utf-16"), b"\xef\xbb\xbf" + good, b'{"model": "atlas", "model": 1}']
    kinds = ["text/plain", "", "application/json; charset=utf-16", "multipart/form-data; boundary="]
    sent = [(body, "application/json") for body in bodies] + [(good, kind) for kind in kinds]
    wrong = []
    with httpx.Client(base_url=server.url, timeout=SECONDS) as http:
        for body, kind in sent:
            response = http.post(path, content=body, headers={"content-type": kind})
            if response.status_code >= 500 or (response.status_code >= 400 and "error" not in response.json()):
                wrong.append((response.status_code, response.text[:300], body[:80], kind))
    assert not wrong
