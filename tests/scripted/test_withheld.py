"""What leaves when answers can be withheld: by whatever field, only what belongs to tokens that were scored and passed.

The scripted engine lists, beside each token, the tokens of the next numbers as the likelier ones: where one of these is
named, something left that was never scored.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from tokenizers import Tokenizer

from app.settings import ATLAS, Settings
from guard.engine.outputs import STEP
from guard.policy import Mode
from tests.scripted.script import HIGH, LOW
from tests.scripted.server import over, scripted_app
from tests.scripted.test_scripted import CHAT, ask, asking, result, streamed

TOKENS = Tokenizer.from_file(str(ATLAS / "tokenizer.json"))
COMPLETIONS, RESPONSES = "/v1/completions", "/v1/responses"
ABSTAIN = {"mode": "abstain"}
PROMPT = "<s><|user|>Is it {}?<|assistant|>"


# Of a prompt without its first token, of which nothing is said.
OWN = set(TOKENS.encode(PROMPT.format("safe"), add_special_tokens=False).tokens)


def id_of(text: str) -> int:
    return int(TOKENS.encode(text, add_special_tokens=False).ids[0])


@pytest.fixture
async def mute() -> AsyncIterator[httpx.AsyncClient]:
    """Whose engine ends each answer before it has begun, as one does that may draw nothing else."""
    async with scripted_app(text="") as made, over(made) as client:
        yield client


async def completed(http: httpx.AsyncClient, words: str, **more: Any) -> Any:
    response = await http.post(COMPLETIONS, json={"model": "atlas", "prompt": PROMPT.format(words), **more})
    assert response.status_code == 200, response.text
    return response.json()


def samples(metrics: str, name: str) -> float:
    return sum(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith(f"{name}{{"))


# -- a token that stops the answer is one of its tokens ----------------------------------------------------------------


@pytest.mark.parametrize("include", [True, False])
async def test_a_stop_token_is_scored(http: httpx.AsyncClient, include: bool) -> None:
    stop = {"stop_token_ids": [id_of("It")], "include_stop_str_in_output": include, "return_token_ids": True}
    reply = await ask(http, "risky", hallucination=ABSTAIN, **stop)
    choice = reply["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("content_filter", None)
    assert (choice["stop_reason"], choice["token_ids"]) == (None, None)
    passed = await ask(http, "safe", hallucination={**ABSTAIN, "tokens": True}, **stop)
    assert result(passed)["risk"] == pytest.approx(LOW, rel=0.5)
    assert result(passed)["scored_tokens"] == 1
    assert passed["choices"][0]["stop_reason"] == id_of("It")
    assert passed["choices"][0]["message"]["content"] == ("I" if include else "")


@pytest.mark.parametrize("hold", ["none", "window", "answer"])
@pytest.mark.parametrize("n", [1, 2])
async def test_a_stop_token_is_scored_in_streams(http: httpx.AsyncClient, hold: str, n: int) -> None:
    stop = {"stop_token_ids": [id_of("It")], "include_stop_str_in_output": True, "return_token_ids": True}
    chunks = await streamed(http, "risky", n=n, logprobs=True, hallucination={**ABSTAIN, "hold": hold}, **stop)
    assert '"I"' not in json.dumps(chunks)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [one["finish_reason"] for one in choices if one["finish_reason"]] == ["content_filter"] * n
    assert not any(one.get("token_ids") or one.get("stop_reason") for one in choices)


async def test_a_shown_stop_token_is_among_the_tokens(http: httpx.AsyncClient) -> None:
    stop = {"stop_token_ids": [id_of(" Sri")], "include_stop_str_in_output": True}
    reply = await ask(http, "safe", hallucination={"mode": "score", "tokens": True}, **stop)
    assert reply["choices"][0]["message"]["content"] == "It is in Sri"
    assert [one["token"] for one in result(reply)["tokens"]] == ["I", "t", " is", " in", " Sri"]


async def test_a_further_end_of_the_model_s_own_is_none_of_its_tokens(app: FastAPI, http: httpx.AsyncClient) -> None:
    """As of models whose generation config names several, which vLLM treats as stop tokens."""
    app.state.engine_client._ends = frozenset([1, id_of(" Sri")])
    reply = await ask(http, "safe", stop_token_ids=[id_of(" Sri")], hallucination={"tokens": True})
    assert [one["token"] for one in result(reply)["tokens"]] == ["I", "t", " is", " in"]


@pytest.mark.parametrize("length", [1, 2])
async def test_each_token_of_a_scored_answer_counts(http: httpx.AsyncClient, length: int) -> None:
    assert result(await ask(http, "safe", max_tokens=length))["scored_tokens"] == length


# -- what else was likely ----------------------------------------------------------------------------------------------

LOGPROBS = {
    CHAT: {"logprobs": True, "top_logprobs": 5},
    COMPLETIONS: {"logprobs": 5, "prompt_logprobs": 3},
    RESPONSES: {"include": ["message.output_text.logprobs"], "top_logprobs": 5},
}


def body(path: str, words: str, **more: Any) -> dict[str, Any]:
    asked = {
        CHAT: {"messages": [{"role": "user", "content": words}]},
        COMPLETIONS: {"prompt": PROMPT.format(words)},
        RESPONSES: {"input": words},
    }
    return {"model": "atlas", **asked[path], **LOGPROBS[path], **more}


def named(content: Any, at: str = "") -> list[Any]:
    """All tokens that logprobs name, anywhere in an answer: (token, whether as a likely one)."""
    found: list[Any] = []
    if isinstance(content, list):
        for one in content:
            found += named(one, at)
    elif isinstance(content, dict):
        if at == "top_logprobs" and "token" not in content:
            found += [(token, True) for token in content]
        elif "token" in content and "logprob" in content:
            found.append((content["token"], at == "top_logprobs"))
        for key, value in content.items():
            found += named(value, key)
    return found


@pytest.mark.parametrize("path", list(LOGPROBS))
async def test_only_drawn_tokens_have_log_probabilities(http: httpx.AsyncClient, path: str) -> None:
    shown = (await http.post(path, json=body(path, "safe", hallucination={"mode": "score"}))).json()
    spoken = {token for token, _ in named(shown)}
    kept = (await http.post(path, json=body(path, "safe", hallucination=ABSTAIN))).json()
    assert kept["hallucination"]["results"][0]["action"] == "pass"
    drawn = {"I", "t", " is", " in", " Sri", " Lanka", ".", "</s>"}
    assert {token for token, _ in named(kept["choices" if "choices" in kept else "output"])} - OWN <= drawn
    assert spoken > drawn, "other modes name others, too"


async def test_named_tokens_have_no_log_probabilities(http: httpx.AsyncClient) -> None:
    wanted = {"logprobs": True, "logprob_token_ids": [5, 6, 7], "hallucination": ABSTAIN}
    items = (await ask(http, "safe", **wanted))["choices"][0]["logprobs"]["content"]
    assert all([one["token"] for one in item["top_logprobs"]] == [item["token"]] for item in items)


@pytest.mark.parametrize("words", ["safe", "risky"])
async def test_a_prompt_s_log_probabilities_are_its_own_tokens(http: httpx.AsyncClient, words: str) -> None:
    ids = TOKENS.encode(PROMPT.format(words), add_special_tokens=False).ids
    for options in ({"mode": "score"}, ABSTAIN, {**ABSTAIN, "prompt_check": True, "threshold": 0.5}):
        choice = (await completed(http, words, prompt_logprobs=2, hallucination=options))["choices"][0]
        sizes = {len(item) for item in choice["prompt_logprobs"][1:]}
        if options["mode"] == "score":
            assert sizes == {3}
            continue
        assert sizes == {1}
        assert [int(next(iter(item))) for item in choice["prompt_logprobs"][1:]] == ids[1:]


# -- an answer without tokens ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2])
async def test_an_empty_answer_has_nothing_beside_it(mute: httpx.AsyncClient, n: int) -> None:
    wanted = {"logprobs": True, "top_logprobs": 5, "return_token_ids": True, "n": n}
    reply = await ask(mute, "risky", hallucination=ABSTAIN, **wanted)
    assert (reply["hallucination"]["reason"], reply["hallucination"]["action"]) == ("empty", "pass")
    for choice in reply["choices"]:
        assert (choice["message"]["content"], choice["token_ids"], choice["stop_reason"]) == ("", [1], None)
        (item,) = choice["logprobs"]["content"]
        assert (item["token"], item["logprob"]) == ("</s>", -9999.0), "vLLM's word for one that is not known"
        assert [one["token"] for one in item["top_logprobs"]] == ["</s>"]
    chunks = await streamed(mute, "risky", hallucination=ABSTAIN, **wanted)
    items = [i for c in chunks for o in c["choices"] for i in (o.get("logprobs") or {"content": []})["content"]]
    assert {one["token"] for item in items for one in [item, *item["top_logprobs"]]} == {"</s>"}
    assert len(items) == n


@pytest.mark.parametrize("path", [COMPLETIONS, RESPONSES])
async def test_an_empty_answer_has_nothing_beside_it_in_other_apis(mute: httpx.AsyncClient, path: str) -> None:
    more = {"hallucination": ABSTAIN, "return_token_ids": True, "enable_response_messages": True}
    reply = (await mute.post(path, json=body(path, "risky", **more))).json()
    assert reply["hallucination"]["reason"] == "empty"
    if path == COMPLETIONS:
        choice = reply["choices"][0]
        assert (choice["token_ids"], choice["logprobs"]["tokens"]) == ([1], ["</s>"])
        assert choice["logprobs"]["top_logprobs"] == [{"</s>": -9999.0}]
    else:
        assert {token for token, _ in named(reply)} <= {"</s>"}
        assert reply["output_messages"][0]["tokens"] in ([1], "</s>", [])


# -- echo without generation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("options", [{"mode": "score"}, ABSTAIN, {**ABSTAIN, "threshold": 0.0, "prompt_check": True}])
async def test_echo_without_generation_is_empty(http: httpx.AsyncClient, options: Any, stream: bool) -> None:
    """As evaluation harnesses ask: the prompt, and the log-probabilities of its tokens."""
    text = PROMPT.format("risky")
    asked = {"echo": True, "max_tokens": 0, "logprobs": 1, "return_token_ids": True, "hallucination": options}
    if stream:
        asked = {**asked, "stream": True, "return_token_ids": False}
        response = await http.post(COMPLETIONS, json={"model": "atlas", "prompt": text, **asked})
        frames = [json.loads(line[6:]) for line in response.text.split("\n\n") if line.startswith("data: {")]
        (reply,) = [frame for frame in frames if frame["choices"]]
    else:
        reply = await completed(http, "risky", **asked)
    choice, block = reply["choices"][0], reply["hallucination"]
    assert (block["type"], block["reason"], block["action"]) == ("not_scored", "empty", "pass")
    assert choice["finish_reason"] == "length"
    ids = TOKENS.encode(text, add_special_tokens=False).ids
    assert choice["text"] == (text if stream else "")  # vLLM leaves the text out where it gives the ids
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(ids)
    assert all(isinstance(one, float) for one in logprobs["token_logprobs"][1:])
    if options["mode"] == "abstain":
        assert all(len(one) == 1 for one in logprobs["top_logprobs"][1:])
        assert choice.get("token_ids") in (None, [1]), "not even the number of what the engine drew"
    metrics = (await http.get("/metrics")).text
    assert samples(metrics, "hguard_risk_count") == 0
    assert samples(metrics, "hguard_risk_band_answers_total") == 0


async def test_echo_with_generation_is_scored(http: httpx.AsyncClient) -> None:
    reply = await completed(http, "risky", echo=True, max_tokens=4, hallucination=ABSTAIN)
    assert reply["choices"][0]["finish_reason"] == "content_filter"


# -- what is said of a withheld answer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", list(LOGPROBS))
async def test_a_withheld_answer_has_no_log_probabilities(http: httpx.AsyncClient, path: str) -> None:
    for stream in (False, True):
        asked = body(path, "risky", hallucination=ABSTAIN, stream=stream)
        asked.pop("prompt_logprobs", None)  # not in streams, says vLLM
        response = await http.post(path, json=asked)
        assert response.status_code == 200, response.text
        assert not any(word in response.text for word in ("Sri", "Lanka"))
        assert '"abstained"' in response.text


@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_of_it_is_kept_by_vllm(http: httpx.AsyncClient, app: FastAPI, stream: bool) -> None:
    """Of answers that windows end one by one, each of several of a request."""
    engine = app.state.engine_client
    body = {
        "model": "atlas",
        "messages": [{"role": "user", "content": "Is it long and risky?"}],
        "n": 3,
        "max_tokens": 90,
    }
    response = await http.post("/v1/chat/completions", json={**body, "stream": stream, "hallucination": ABSTAIN})
    assert response.text.count("content_filter") == 3
    assert len(engine.engine_core.aborted) == 3, "in the engine, too"
    processor = engine.output_processor
    assert (processor.request_states, processor.parent_requests, dict(processor.external_req_ids)) == ({}, {}, {})
    assert (engine._watch._gates, engine._watch._followed) == ({}, {})
    assert engine.pool.in_use == 0


async def test_its_risk_and_length_are_rounded_for_callers_and_exact_in_the_log(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    # What is held is looked at once for as many tokens as a window has: first when eight windows of eight have scores.
    for words, tokens in (("risky", 7), ("long risky", 15)):
        with caplog.at_level(logging.INFO, logger="hguard"):
            caplog.clear()
            reply = await ask(http, words, hallucination={**ABSTAIN, "threshold": 0.123456})
        one = result(reply)
        assert one["risk"] == round(one["risk"], 2) >= one["threshold"]
        assert "peak" not in one
        assert one["scored_tokens"] == reply["usage"]["completion_tokens"] == STEP
        (line,) = [json.loads(r.message) for r in caplog.records if r.message.startswith('{"event": "answered"')]
        assert line["tokens"] == tokens
        assert line["risks"] == [pytest.approx(HIGH, abs=1e-4)]


async def test_it_is_never_said_to_be_longer_than_was_asked_for(http: httpx.AsyncClient) -> None:
    reply = await ask(http, "risky", max_tokens=3, hallucination=ABSTAIN)
    assert reply["usage"]["completion_tokens"] == 3


async def test_a_second_try_tells_no_more_of_the_first(http: httpx.AsyncClient) -> None:
    reply = await ask(http, "risky", hallucination={**ABSTAIN, "retry_scale": 0, "threshold": 0.977})
    one = result(reply)
    assert one["action"] == "pass"
    assert one["first_risk"] == 0.98
    assert reply["usage"]["completion_tokens"] == 8 + STEP


async def test_a_risk_below_the_next_hundredth_is_not_said_to_pass(http: httpx.AsyncClient) -> None:
    """Rounded down it would lie under its own threshold."""
    options = {**ABSTAIN, "threshold": HIGH - 1e-9}
    exact = result(await ask(http, "risky", hallucination={"mode": "score"}))["risk"]
    one = result(await ask(http, "risky", hallucination={**options, "threshold": exact}))
    assert one["action"] == "abstained"
    assert one["risk"] >= one["threshold"] == exact


async def test_failing_closed_in_score_mode_takes_nothing_else_away() -> None:
    async with scripted_app(Settings(mode=Mode.SCORE, fail="closed")) as app, over(app) as http:
        items = (await ask(http, "safe", logprobs=True, top_logprobs=3))["choices"][0]["logprobs"]["content"]
        assert all(len(item["top_logprobs"]) == 3 for item in items)


async def test_asking_is_what_it_was(http: httpx.AsyncClient) -> None:
    """A caller who asks for what does not leave is not refused."""
    response = await http.post(CHAT, json=asking("safe", logprobs=True, top_logprobs=20, hallucination=ABSTAIN))
    assert response.status_code == 200


# -- what would ask for it token by token ------------------------------------------------------------------------------


BIASES = ({"logit_bias": {"1": 5}}, {"allowed_token_ids": [1, 2]}, {"bad_words": ["Sri"]})


@pytest.mark.parametrize("allowed", [False, True])
async def test_tokens_are_neither_favoured_nor_forbidden(allowed: bool) -> None:
    """Whether an answer of one of some tokens is withheld tells which of them is the likeliest: an attack of
    ``bench.withheld`` makes whole answers of that."""
    settings = Settings(mode=Mode.ABSTAIN, allow_token_bias=allowed)
    async with scripted_app(settings) as app, over(app) as http:
        for path, stream, bias in itertools.product((CHAT, COMPLETIONS), (False, True), BIASES):
            asked = {**body(path, "safe", stream=stream), **bias}
            asked.pop("prompt_logprobs", None)  # not in streams, says vLLM
            response = await http.post(path, json=asked)
            if allowed:
                assert response.status_code == 200, response.text
            else:
                assert response.status_code == 400, response.text
                assert f"{next(iter(bias))} is not allowed" in response.text
                assert "--allow-token-bias" in response.text


async def test_who_may_see_all_may_favour_tokens() -> None:
    settings = Settings(mode=Mode.ABSTAIN, loosest_mode=Mode.SCORE)
    async with scripted_app(settings) as app, over(app) as http:
        response = await http.post(CHAT, json=asking("safe", logit_bias={"1": 5}))
    assert response.status_code == 200, response.text
