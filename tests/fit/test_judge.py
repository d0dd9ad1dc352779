"""The judges: by rule on what real models said, and a remote one that may be down or talk nonsense."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from guard.errors import FitError
from guard.fit.answers import consistent, judge_all, representative
from guard.fit.judge import RemoteJudge, judge
from guard.fit.questions import Question
from guard.fit.workspace import Workspace

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


async def ask(handler: Callable[[httpx.Request], httpx.Response]) -> bool | None:
    async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
        return await JUDGE.ask(client, QUESTION, "It is in the USA.")


@pytest.mark.parametrize(
    ("text", "verdict"), [("right", True), ("Wrong.", False), ("**declined**", None), ("The answer is right", True)]
)
async def test_remote_verdicts(text: str, verdict: bool | None) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert str(request.url) == "http://judge/v1/chat/completions"
        assert request.headers["authorization"] == "Bearer secret"
        body = json.loads(request.content)
        assert "It is in the USA." in body["messages"][0]["content"]
        assert body["model"] == "some-model"
        return says(text)

    assert await ask(handler) is verdict


async def test_a_judge_that_recovers() -> None:
    replies = [httpx.Response(503), httpx.Response(200, text="not json"), says("right")]
    assert await ask(lambda request: replies.pop(0)) is True


@pytest.mark.parametrize(
    ("reply", "problem", "attempts"),
    [
        (httpx.Response(500), "answers 500", 3),
        (httpx.Response(401), "answers 401", 1),
        (says("perhaps"), "was asked for one of right, wrong, declined, and said 'perhaps'", 3),
        (says("right or wrong"), "was asked .* and said 'right or wrong'", 3),
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
        await judge_all(Workspace(tmp_path, {}), [QUESTION, QUESTION], samples, JUDGE)
    down = False
    verdicts = await judge_all(Workspace(tmp_path, {}), [QUESTION, QUESTION], samples, JUDGE)
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


def test_the_most_frequent_answer_stands_for_all() -> None:
    assert representative(["x", "y", "y", "x", "y"], [False, True, True, False, False], True) == 1
    assert representative(["x", "y", "y"], [False, False, False], False) == 1
