"""The judges: by rule on what real models said, and a remote one that may be down or talk nonsense."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from guard.errors import FitError
from guard.harness.answers import consistent, judge_all
from guard.harness.store import StageStore
from guard.judge.question import Question
from guard.judge.rules import RemoteJudge, judge

REAL = Path(__file__).parents[3] / "shared" / "data" / "triviaqa_gemma3_4b_samples.jsonl"
JUDGE = RemoteJudge("http://judge/v1/", "some-model", "secret", attempts=3, pause=0)
QUESTION = Question("Where is Texas?", ("United States",), "Texas")


@pytest.mark.skipif(not REAL.is_file(), reason="the real answers are not part of the project")
def test_agreement_with_given_verdicts_on_real_answers() -> None:
    rows = [json.loads(line) for line in REAL.read_text().splitlines()]
    pairs = [
        (bool(judge(Question(row["question"], tuple(row["answers"]), row["id"]), answer)), verdict)
        for row in rows
        for answer, verdict in zip(row["responses"], row["judged"], strict=True)
    ]
    assert len(pairs) == 7000
    assert sum(ours == theirs for ours, theirs in pairs) / len(pairs) >= 0.9725


def says(text: str, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json={"choices": [{"message": {"content": text}}]})


def thinks(finish: str, **message: str | None) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"finish_reason": finish, "message": {"content": None, **message}}]})


async def ask(handler: Callable[[httpx.Request], httpx.Response]) -> bool | None:
    async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
        return await replace(JUDGE, _ways=dict(JUDGE._ways)).ask(client, QUESTION, "It is in the USA.")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("right", True),
        ("Wrong.", False),
        ("**declined**", None),
        (" Right\n", True),
        ("incorrect", False),
        ("correct.", True),
        ('{"verdict": "wrong"}', False),
        ('```json\n{"verdict": "right"}\n```', True),
        ('"declined"', None),
        ("<think>It is not right, or is it?</think>\n\nright", True),
    ],
)
async def test_remote_verdicts(text: str, verdict: bool | None) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert str(request.url) == "http://judge/v1/chat/completions"
        assert request.headers["authorization"] == "Bearer secret"
        body = json.loads(request.content)
        assert "It is in the USA." in body["messages"][0]["content"]
        assert body["model"] == "some-model"
        schema = body["response_format"]["json_schema"]["schema"]
        assert schema["properties"]["verdict"]["enum"] == ["right", "wrong", "declined"]
        return says(text)

    assert await ask(handler) is verdict


@pytest.mark.parametrize(
    "text",
    [
        "not right",
        "That is not right.",
        "The answer is not wrong",
        "The answer is right",
        "right or wrong",
        "right wrong",
        "perhaps",
        '{"verdict": "perhaps"}',
        '{"verdict": "right", "verdict": "wrong"}',
        '{"verdict": "right", "but": "wrong"}',
        '{"answer": "right"}',
        '["verdict", "right"]',
        "true",
        "1",
    ],
)
async def test_what_is_no_verdict_is_not_read_as_one(text: str) -> None:
    with pytest.raises(FitError, match="was asked for one of right, wrong, declined, and said"):
        await ask(lambda request: says(text))


async def test_a_judge_that_recovers() -> None:
    replies = [httpx.Response(503), httpx.Response(200, text="not json"), says("right")]
    assert await ask(lambda request: replies.pop(0)) is True


@pytest.mark.parametrize(
    ("reply", "problem", "attempts"),
    [
        (httpx.Response(500), "answers 500", 3),
        (httpx.Response(401), "answers 401;", 1),
        (httpx.Response(302), "answers 302", 1),
        (httpx.Response(429, text="slow down"), r"answers 429 \(slow down\)", 3),
        (httpx.Response(400, json={"error": {"message": "no such\nmodel"}}), r"answers 400 \(no such model\)", 1),
        (httpx.Response(404, json={"detail": "Not NeuronSelection"}), r"answers 404 \(Not NeuronSelection\)", 1),
        (thinks("stop"), "was asked .* and said 'nothing'", 3),
        (thinks("stop", refusal="I will not judge."), "was asked .* and said 'I will not judge.'", 3),
        (says("perhaps"), "was asked for one of right, wrong, declined, and said 'perhaps'", 3),
        (says("right or wrong"), "was asked .* and said 'right or wrong'", 3),
        (httpx.Response(200, json={"choices": [{"message": None}]}), "does not answer as a chat endpoint does", 3),
        (httpx.Response(200, json={"odd": 1}), "does not answer as a chat endpoint does", 3),
    ],
)
async def test_a_judge_that_does_not(reply: httpx.Response, problem: str, attempts: int) -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return reply

    with pytest.raises(FitError, match=f"the judge at http://judge/v1/ {problem}.*kept"):
        await ask(handler)
    assert len(asked) == attempts


UNSUPPORTED = (
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
)


def refuses(message: str, status: int = 400, **more: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, **more}})


@pytest.mark.parametrize(
    ("refusals", "left"),
    [
        ([refuses(UNSUPPORTED)], {"temperature", "response_format", "max_completion_tokens"}),
        ([refuses("'temperature' does not support 0 with this model.")], {"max_tokens", "response_format"}),
        ([refuses("This response_format type is unavailable now")], {"temperature", "max_tokens"}),
        ([refuses("json_schema is not supported", 422)], {"temperature", "max_tokens"}),
        ([httpx.Response(422, json={"detail": "temperature: extra field"})], {"max_tokens", "response_format"}),
        ([refuses("Unsupported value.", param="temperature")], {"max_tokens", "response_format"}),
        (
            [refuses(UNSUPPORTED), refuses("no temperature here"), refuses("what is max_completion_tokens?")],
            {"response_format"},
        ),
    ],
)
async def test_a_parameter_that_the_judge_refuses_is_left_out(refusals: list[httpx.Response], left: set[str]) -> None:
    """And is not tried again with the next answer."""
    replies = [*refusals, says("right"), says("wrong")]
    bodies = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return replies.pop(0)

    judge = RemoteJudge("http://judge/v1", "some-model", attempts=1, pause=0)
    async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
        assert await judge.ask(client, QUESTION, "a") is True
        assert await judge.ask(client, QUESTION, "b") is False
    assert [set(body) - {"model", "messages"} for body in bodies[-2:]] == [left, left]
    assert replies == []


async def test_two_answers_under_way_when_a_parameter_is_refused() -> None:
    """Both were asked with it; the second refusal says nothing new."""

    def handler(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        return refuses(UNSUPPORTED) if "max_tokens" in body else says("right")

    judge = RemoteJudge("http://judge/v1", "some-model", attempts=1, pause=0)
    async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
        verdicts = await asyncio.gather(*(judge.ask(client, QUESTION, str(i)) for i in range(8)))
    assert verdicts == [True] * 8


@pytest.mark.parametrize(
    "reply",
    [
        thinks("length", reasoning_content="Let me see"),
        thinks("stop", reasoning="Let me see"),
        thinks("length", content=""),
        thinks("length", content="<think>Let me see"),
    ],
)
async def test_a_judge_that_thinks_is_named(reply: httpx.Response) -> None:
    with pytest.raises(FitError, match=r"thinks and gives no verdict: switch its thinking off .*judge-model"):
        await ask(lambda request: reply)


async def test_a_judge_that_thinks_may_end_its_thought() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        limited = "max_tokens" in json.loads(request.content)
        return thinks("length", reasoning_content="Let me") if limited else says("right")

    assert await ask(handler) is True


async def test_the_key_stays_out_of_what_is_said() -> None:
    with pytest.raises(FitError) as said:
        await ask(lambda request: refuses("Incorrect API key provided: secret", 401))
    assert "answers 401 (Incorrect API key provided: (the key))" in str(said.value)


async def test_a_judge_that_is_down() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    with pytest.raises(FitError, match="connection refused"):
        await ask(handler)


async def test_judged_answers_are_not_judged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    down = True

    async def answer(self: RemoteJudge, client: Any, question: Question, text: str) -> bool | None:
        asked.append(text)
        if down and text == "c":
            raise FitError("the judge is down")
        return text == "a"

    monkeypatch.setattr(RemoteJudge, "ask", answer)
    samples = {0: ["a", "a", "b"], 1: ["c"]}
    with pytest.raises(FitError, match="down"):
        await judge_all(StageStore(tmp_path, {}), [QUESTION, QUESTION], samples, JUDGE)
    down = False
    verdicts = await judge_all(StageStore(tmp_path, {}), [QUESTION, QUESTION], samples, JUDGE)
    assert verdicts == {0: [True, True, False], 1: [False]}
    assert sorted(asked) == ["a", "b", "c", "c"]


@pytest.mark.parametrize(
    ("verdicts", "agree", "wanted"),
    [
        ([True] * 10, 1.0, True),
        ([False] * 10, 1.0, False),
        ([True] * 9 + [False], 1.0, None),
        ([True] * 9 + [False], 0.9, True),
        ([False] * 9 + [None], 1.0, None),
        ([None] * 3, 1.0, None),
        ([], 1.0, None),
    ],
)
def test_consistency(verdicts: list[bool | None], agree: float, wanted: bool | None) -> None:
    assert consistent(verdicts, agree) is wanted
