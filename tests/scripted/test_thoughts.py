"""What leaves of a model that thinks before it answers: thoughts only behind an answer that passed as a whole.

What lies between ``?`` and ``!`` is thinking, as in ``tests.contract``. The thoughts hold the answer.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from app.settings import ATLAS
from tests.contract.house import REASONING
from tests.scripted.script import HIGH, LOW, Asked, Script
from tests.scripted.server import over, scripted_app

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
TOKENS = Tokenizer.from_file(str(ATLAS / "tokenizer.json"))
THOUGHT, SAID = " Kandy or Galle", " It is in Sri Lanka."
SECRETS = ("Kandy", "Galle", "Lanka")


def ids_of(text: str) -> list[int]:
    return list(TOKENS.encode(text, add_special_tokens=False).ids)


(END,) = ids_of("!")
THINKING = len(ids_of(f"?{THOUGHT}!"))  # tokens


@dataclass(frozen=True)
class Thinks(Script):
    """Of high risk from token ``risky_from`` on, but for the thoughts where ``calm``."""

    calm: int = 0

    def risky(self, token: int, choice: int) -> bool:
        return token >= self.calm and super().risky(token, choice)


def think(asked: Asked) -> Script:
    """By the words of the question."""
    text, words = f"?{THOUGHT}!{SAID}", asked.text.lower()
    if "blank" in words:
        text = f"?{THOUGHT}! "
    if "endless" in words or "plain" in words:
        text = f"{THOUGHT},{SAID}"
    script = Thinks(text=text)
    if "risky" in words:
        script = replace(script, risky_from=0, calm=THINKING - 1 if "calm" in words else -1)
    if "late" in words:  # an answer of several windows, of which the first ones pass
        script = replace(script, text=f"?{THOUGHT}!" + SAID * 6, risky_from=THINKING + 24)
    return script


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with scripted_app(choose=think, extra=REASONING) as app, over(app) as client:
        yield client
        assert app.state.engine_client.pool.in_use == 0


def body(path: str, words: str, length: int | None = None) -> dict[str, Any]:
    prompt = f"<s><|user|>Is it {words}<|assistant|>"
    asked: dict[str, Any] = {
        CHAT: {"messages": [{"role": "user", "content": words}]},
        COMPLETIONS: {"prompt": prompt, "max_tokens": 64},
        RESPONSES: {"input": words},
        MESSAGES: {"messages": [{"role": "user", "content": words}], "max_tokens": 64},
    }[path]
    if length is not None:
        asked["max_output_tokens" if path == RESPONSES else "max_tokens"] = length
    return {"model": "atlas", **asked}


@dataclass(frozen=True)
class Left:
    """What left: all bytes, and the verdict."""

    text: str
    verdict: dict[str, Any]

    @property
    def action(self) -> str:
        block = self.verdict
        return str(block["results"][0]["action"] if "results" in block else block["action"])

    @property
    def secrets(self) -> list[str]:
        return [word for word in SECRETS if word in self.text]


async def asked(http: httpx.AsyncClient, path: str, words: str, stream: bool, **more: Any) -> Left:
    length = more.pop("length", None)
    response = await http.post(path, json={**body(path, words, length), "stream": stream, **more})
    assert response.status_code == 200, response.text
    if not stream:
        return Left(response.text, response.json()["hallucination"])
    frames = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    said, verdict = "", None
    for frame in frames:
        said += "".join(pieces(frame))
        verdict = frame.get("hallucination") or frame.get("response", {}).get("hallucination") or verdict
    assert verdict is not None
    return Left(said + response.text, verdict)


def pieces(content: Any, at: str = "") -> Any:
    """All texts of a frame, in their order: words may be cut in two by frames."""
    if isinstance(content, str) and at in ("content", "reasoning", "text", "thinking", "delta"):
        yield content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from pieces(value, key)
    elif isinstance(content, list):
        for value in content:
            yield from pieces(value, at)


SEPARATED = pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
WHOLE_OR_STREAMED, HELD, HOLDS = (False, True), ("window", "answer"), ("none", "window", "answer")


def abstain(hold: str) -> dict[str, Any]:
    return {"mode": "abstain", "hold": hold}


@SEPARATED
async def test_thoughts_leave_with_an_answer_that_passed(http: httpx.AsyncClient, path: str) -> None:
    for stream, hold in product(WHOLE_OR_STREAMED, HOLDS):
        left = await asked(http, path, "safe", stream, hallucination=abstain(hold))
        assert (left.action, left.secrets) == ("pass", list(SECRETS)), (stream, hold)


@SEPARATED
@pytest.mark.parametrize("words", ["calm and risky", "late", "endless", "blank"])
async def test_without_one_nothing_of_them_leaves(http: httpx.AsyncClient, path: str, words: str) -> None:
    """A later window counts, too: the thoughts may say what it is withheld for."""
    for stream, hold in [(False, "none"), *product(WHOLE_OR_STREAMED, HELD)]:
        left = await asked(http, path, words, stream, hallucination=abstain(hold))
        assert (left.action, left.secrets) == ("abstained", []), (stream, hold)


@SEPARATED
async def test_a_length_that_ends_with_the_thoughts(http: httpx.AsyncClient, path: str) -> None:
    for stream, hold, length in product(WHOLE_OR_STREAMED, HELD, (THINKING - 1, THINKING)):
        left = await asked(http, path, "safe", stream, length=length, hallucination=abstain(hold))
        assert (left.action, left.secrets) == ("abstained", []), (stream, hold, length)
        assert left.verdict["reason"] == "unfinished_thinking"


@pytest.mark.parametrize("stop", [{"stop_token_ids": [END]}, {"stop": ["!"]}, {"stop": ["Galle!"]}])
async def test_a_stop_that_ends_the_thoughts(http: httpx.AsyncClient, stop: dict[str, Any]) -> None:
    for stream, hold, include in product(WHOLE_OR_STREAMED, HELD, (False, True)):
        more = {**stop, "include_stop_str_in_output": include, "return_token_ids": True}
        left = await asked(http, CHAT, "safe", stream, hallucination=abstain(hold), **more)
        assert (left.action, left.secrets) == ("abstained", []), (stream, hold, include)
        assert left.verdict["reason"] == "unfinished_thinking"


async def test_score_mode_says_that_there_was_no_answer(http: httpx.AsyncClient) -> None:
    for words, more in (("safe", {"stop_token_ids": [END]}), ("blank", {})):
        left = await asked(http, CHAT, words, False, hallucination={"mode": "score"}, **more)
        assert (left.action, left.verdict["reason"]) == ("pass", "unfinished_thinking")
        assert "Galle" in left.text


# -- completions: vLLM separates nothing there -------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["plain", "safe"])
async def test_all_of_a_completion_is_scored(http: httpx.AsyncClient, words: str) -> None:
    whole = ids_of(f"{THOUGHT},{SAID}" if words == "plain" else f"?{THOUGHT}!{SAID}")
    for stream, risky in product(WHOLE_OR_STREAMED, (False, True)):
        question = f"{words} and risky" if risky else words
        left = await asked(http, COMPLETIONS, question, stream, hallucination={"mode": "score"})
        (one,) = left.verdict["results"]
        assert one["risk"] == pytest.approx(HIGH if risky else LOW, abs=1e-6)
        assert one["scored_tokens"] == len(whole)


async def test_a_risky_completion_without_an_end_of_thoughts_is_withheld(http: httpx.AsyncClient) -> None:
    for stream, hold in product(WHOLE_OR_STREAMED, HOLDS):
        left = await asked(http, COMPLETIONS, "plain and risky", stream, hallucination=abstain(hold))
        assert left.action == "abstained"
        assert left.secrets == [] or (stream and hold == "none")
        passed = await asked(http, COMPLETIONS, "plain", stream, hallucination=abstain(hold))
        assert (passed.action, passed.secrets) == ("pass", list(SECRETS))


async def test_what_a_prompt_holds_of_a_turn_is_scored_after_its_thoughts() -> None:
    """In chat the thoughts of the prompt end where the answer begins; in a completion all of it is one text."""
    given, rest = " It is", " in Sri Lanka."
    turn = f"?{THOUGHT}!{given}"
    continued = [{"role": "user", "content": "Is it continued?"}, {"role": "assistant", "content": turn}]
    asked = {
        CHAT: {"messages": continued, "add_generation_prompt": False, "continue_final_message": True},
        COMPLETIONS: {"prompt": f"<s><|user|>Is it continued?<|assistant|>{turn}"},
    }
    lengths: dict[str, int] = {}
    async with scripted_app(choose=lambda _: Script(text=rest), extra=REASONING) as app, over(app) as client:
        engine = app.state.engine_client
        for path, more in asked.items():
            noting = Noting(engine.readout)
            engine.readout_of = lambda _, noting=noting: noting
            reply = await client.post(path, json={"model": "atlas", "hallucination": {"mode": "score"}, **more})
            assert reply.status_code == 200, reply.text
            lengths[path] = noting.longest
    assert lengths == {CHAT: len(ids_of(given + rest)), COMPLETIONS: len(ids_of(turn + rest))}


class Noting:
    """A readout that notes how many tokens it is asked about."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.longest = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def risk(self, signals: Any, before: int = 0) -> Any:
        self.longest = max(self.longest, len(signals))
        return self.inner.risk(signals, before)
