"""``declined``: an answer that only says that it does not know passes in every mode, and one word more ends that."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import pytest

from app.settings import Settings
from tests.scripted.script import DECLINE, HIGH
from tests.scripted.server import over, scripted_app
from tests.scripted.test_scripted import CHAT, ask, asking, result
from tests.scripted.test_tokens import MESSAGES, said
from tests.scripted.test_withheld import COMPLETIONS, RESPONSES, samples

ABSTAIN: dict[str, Any] = {"mode": "abstain"}


@pytest.mark.parametrize("mode", ["score", "flag", "abstain"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
async def test_it_passes_on_every_route(http: httpx.AsyncClient, path: str, stream: bool, mode: str) -> None:
    ((text, found),) = await said(http, path, "It declines", stream, hallucination={"mode": mode})
    assert text == DECLINE
    assert found["declined"] is True
    assert (found["action"], found["flagged"]) == ("pass", False)
    assert found["risk"] == pytest.approx(HIGH, rel=0.2), "which is told as it is"


@pytest.mark.parametrize("hold", ["none", "window", "answer"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_word_more_and_it_is_withheld(stream: bool, hold: str) -> None:
    async with scripted_app(Settings(loosest_hold="none")) as app, over(app) as http:
        options = {**ABSTAIN, "hold": hold}
        reply = await http.post(CHAT, json=asking("It guesses", stream=stream, hallucination=options))
    assert '"abstained"' in reply.text
    assert "declined" not in reply.text
    assert "Rome" not in reply.text


async def test_one_that_is_cut_or_ends_otherwise_is_an_answer_like_any_other(http: httpx.AsyncClient) -> None:
    """Its tokens may have said more than its text: a stop string hides what follows it."""
    for more in ({"max_tokens": 3}, {"stop": [" know"]}, {"stop": ["."]}):
        choice = (await ask(http, "declines", hallucination=ABSTAIN, **more))["choices"][0]
        assert choice["finish_reason"] == "content_filter"


async def test_with_a_turn_that_began_in_the_prompt_it_is_no_decline(http: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "It declines"}, {"role": "assistant", "content": "It is Rome."}]
    body = {"model": "atlas", "messages": messages, "add_generation_prompt": False, "continue_final_message": True}
    reply = (await http.post(CHAT, json={**body, "hallucination": ABSTAIN})).json()
    assert reply["choices"][0]["finish_reason"] == "content_filter"


async def test_of_several_answers_each_is_told_by_itself(http: httpx.AsyncClient) -> None:
    reply = await ask(http, "declines", n=2, hallucination=ABSTAIN)
    assert [one["declined"] for one in reply["hallucination"]["results"]] == [True, True]


async def test_a_retry_is_not_spent_on_it(http: httpx.AsyncClient) -> None:
    reply = await ask(http, "declines", hallucination={**ABSTAIN, "retry_scale": 0})
    assert "first_risk" not in result(reply)


async def test_a_given_text(http: httpx.AsyncClient) -> None:
    for text, declined in ((DECLINE, True), (f"{DECLINE} It is Rome.", False)):
        body = {"prompt": "Is it risky?", "response": text, "hallucination": ABSTAIN}
        (found,) = (await http.post("/risk", json=body)).json()["hallucination"]["results"]
        assert found.get("declined", False) is declined


async def test_it_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with scripted_app(Settings()) as app, over(app) as http:
        before = (await http.get("/metrics")).text
        with caplog.at_level(logging.INFO, "hguard"):
            await ask(http, "declines")
            await ask(http, "risky")
        after = (await http.get("/metrics")).text
    name = "hguard_declined_answers_total"
    assert samples(after, name) - samples(before, name) == 1
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.getMessage().startswith("{")]
    assert [line["declined"] for line in lines] == [1, 0]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_where_callers_may_not_choose_it_is_judged_as_any_other(stream: bool) -> None:
    """Which of two declines passes would be the answer to a question that the caller thought of."""
    async with scripted_app(Settings(mode="abstain")) as app, over(app) as http:
        reply = await http.post(CHAT, json=asking("It declines", stream=stream))
        given = await http.post("/risk", json={"prompt": "Is it risky?", "response": DECLINE})
    for one in (reply, given):
        assert '"abstained"' in one.text or '"flagged":true' in one.text
        assert "declined" not in one.text


@pytest.mark.parametrize("hidden", ["<|user|>", "<s>"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_tokens_that_the_text_leaves_out_are_no_decline(stream: bool, hidden: str) -> None:
    """Text shows neither special tokens nor a character that lacks bytes; token_ids do."""
    async with scripted_app(Settings(), risky_from=0, text=f"{DECLINE}{hidden}{hidden}") as app, over(app) as http:
        reply = await http.post(CHAT, json=asking("Well?", stream=stream, hallucination=ABSTAIN, return_token_ids=True))
    assert '"abstained"' in reply.text
    assert DECLINE not in reply.text


async def test_a_stop_string_that_never_comes_changes_nothing(http: httpx.AsyncClient) -> None:
    """Text lags behind the tokens by its length."""
    for more in ({"stop": ["Z" * 40]}, {"stop": ["Z"], "include_stop_str_in_output": True}):
        reply = await ask(http, "declines", hallucination=ABSTAIN, **more)
        assert result(reply)["declined"] is True


async def test_with_a_stop_string_no_token_after_a_decline_leaves() -> None:
    settings = Settings(loosest_hold="none")
    text = f"{DECLINE} Please provide more context. Rome, in Italy, at the old port by the river"
    async with scripted_app(settings, risky_from=20, text=text) as app, over(app) as http:
        options = {**ABSTAIN, "hold": "none"}
        body = asking(
            "Well?", stream=True, hallucination=options, stop=["Z" * 60], return_token_ids=True, logprobs=True
        )
        reply = await http.post(CHAT, json=body)
    assert '"abstained"' in reply.text
    assert "Italy" not in reply.text


async def test_a_given_text_after_a_turn_that_began_in_the_prompt(http: httpx.AsyncClient) -> None:
    body = {"prompt": "<s><|user|>Is it risky?<|assistant|>It is in Rome.", "response": " I don't know."}
    (found,) = (await http.post("/risk", json=body)).json()["hallucination"]["results"]
    assert "declined" not in found
