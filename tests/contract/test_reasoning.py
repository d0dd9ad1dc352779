"""Models that think before they answer: thoughts are shown as ever, and the verdict is that of the answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.contract.callers.anthropic import client as anthropic_client
from tests.contract.callers.openai import client
from tests.contract.house import KEY, MODEL, REASONING, REFUSAL, House, opened
from tests.scripted.script import HIGH, LOW, Asked, Script

THOUGHT, SAID = " Kandy or Galle", " It is in Sri Lanka."
TOKENS = 8  # of "? Kandy or Galle!"
WHOLE_AND_STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
RISKY_THOUGHTS, RISKY_ANSWER, ENDLESS = "Thoughts", "Answers", "Endless"
RISKS = pytest.mark.parametrize(("question", "risk"), [(RISKY_THOUGHTS, LOW), (RISKY_ANSWER, HIGH)])


@dataclass(frozen=True)
class Thinking(Script):
    """Of high risk before this token, or from it on."""

    turn: int = TOKENS - 1  # the token that ends the thinking is the lead of the answer, and counts
    before: bool = False

    def risky(self, token: int, choice: int) -> bool:
        return (token < self.turn) is self.before


def think(asked: Asked) -> Script:
    if ENDLESS in asked.text:
        return Thinking(text=f"?{THOUGHT},{SAID}", before=False, turn=99)
    return Thinking(text=f"?{THOUGHT}!{SAID}", before=RISKY_THOUGHTS in asked.text)


@pytest.fixture(scope="module")
def thinker() -> Iterator[House]:
    with opened(REASONING, think) as made:
        yield made


@dataclass
class Told:
    """What one answer was, in any of the three APIs."""

    thought: str
    said: str
    end: str
    refusal: str | None
    verdict: dict[str, Any]
    everything: str


def chat(house: House, question: str, options: dict[str, Any], stream: bool) -> Told:
    reply = client(house.url, KEY).chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": question}],
        stream=stream,
        extra_body={"hallucination": options},
    )
    parts: list[Any] = list(reply) if stream else [reply]
    said = [choice.delta if stream else choice.message for part in parts for choice in part.choices]
    return Told(
        "".join((one.model_extra or {}).get("reasoning") or "" for one in said),
        "".join(one.content or "" for one in said),
        parts[-1].choices[0].finish_reason,
        said[-1].refusal,
        parts[-1].model_extra["hallucination"],
        str(parts),
    )


def responses(house: House, question: str, options: dict[str, Any], stream: bool) -> Told:
    reply: Any = client(house.url, KEY).responses.create(
        model=MODEL, input=question, stream=stream, extra_body={"hallucination": options}
    )
    events = list(reply) if stream else []
    last = events[-1].response if stream else reply
    thoughts = [part.text for item in last.output if item.type == "reasoning" for part in item.content]
    shown = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    refusals = [
        p.refusal for item in last.output if item.type == "message" for p in item.content if p.type == "refusal"
    ]
    if stream:
        assert "".join(shown) == "".join(thoughts)
    return Told(
        "".join(thoughts),
        last.output_text,
        "content_filter" if refusals else {"completed": "stop"}[last.status],
        refusals[0] if refusals else None,
        last.model_extra["hallucination"],
        str([*events, last]),
    )


def messages(house: House, question: str, options: dict[str, Any], stream: bool) -> Told:
    given: Any = {
        "model": MODEL,
        "max_tokens": 60,
        "messages": [{"role": "user", "content": question}],
        "extra_body": {"hallucination": options},
    }
    if stream:
        with anthropic_client(house.url, KEY).messages.stream(**given) as reply:
            events = list(reply)
            last = reply.get_final_message()
        (verdict,) = [event.model_extra["hallucination"] for event in events if event.type == "message_delta"]
    else:
        events, last = [], anthropic_client(house.url, KEY).messages.create(**given)
        verdict = last.model_extra["hallucination"]
    return Told(
        "".join(block.thinking for block in last.content if block.type == "thinking"),
        "".join(block.text for block in last.content if block.type == "text"),
        {"end_turn": "stop", "refusal": "content_filter"}[last.stop_reason],
        last.stop_details.explanation if last.stop_details else None,
        verdict,
        str([*events, last]),
    )


APIS = pytest.mark.parametrize("ask", [chat, responses, messages], ids=lambda ask: ask.__name__)


@APIS
@WHOLE_AND_STREAMED
@RISKS
def test_the_risk_is_that_of_the_answer(thinker: House, ask: Any, question: str, risk: float, stream: bool) -> None:
    told = ask(thinker, question, {"mode": "score", "tokens": True}, stream)
    assert (told.thought, told.said, told.end) == (THOUGHT, SAID, "stop")
    (result,) = told.verdict["results"]
    assert result["risk"] == pytest.approx(risk, abs=1e-6)
    assert "".join(token["token"] for token in result["tokens"]) == SAID


@APIS
@WHOLE_AND_STREAMED
@RISKS
def test_only_a_risky_answer_is_withheld(thinker: House, ask: Any, question: str, risk: float, stream: bool) -> None:
    told = ask(thinker, question, {"mode": "abstain"}, stream)
    if risk == LOW:
        assert (told.thought, told.said, told.end, told.refusal) == (THOUGHT, SAID, "stop", None)
        return
    assert (told.thought, told.said, told.end, told.refusal) == ("", "", "content_filter", REFUSAL)
    assert not any(word in told.everything for word in ("Galle", "Kandy", "Lanka"))


@APIS
@WHOLE_AND_STREAMED
def test_thinking_that_never_ends(thinker: House, ask: Any, stream: bool) -> None:
    told = ask(thinker, ENDLESS, {"mode": "score"}, stream)
    assert (told.thought, told.said, told.end) == (f"{THOUGHT},{SAID}", "", "stop")
    assert (told.verdict["type"], told.verdict["reason"]) == ("not_scored", "unfinished_thinking")
    withheld = ask(thinker, ENDLESS, {"mode": "abstain"}, stream)
    assert (withheld.thought, withheld.end, withheld.refusal) == ("", "content_filter", REFUSAL)
    assert withheld.verdict["action"] == "abstained"


@APIS
def test_thoughts_flow_where_nothing_is_held(thinker: House, ask: Any) -> None:
    told = ask(thinker, RISKY_ANSWER, {"mode": "abstain", "hold": "none"}, True)
    assert (told.thought, told.said) == (THOUGHT, SAID)
    assert (told.end, told.refusal) == ("content_filter", REFUSAL)


@APIS
def test_thoughts_wait_for_the_answer_where_windows_are_held(thinker: House, ask: Any) -> None:
    told = ask(thinker, RISKY_ANSWER, {"mode": "abstain", "hold": "window"}, True)
    assert (told.thought, told.said, told.end, told.refusal) == ("", "", "content_filter", REFUSAL)
    assert not any(word in told.everything for word in ("Galle", "Kandy", "Lanka"))


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_of_thoughts_have_no_risk(thinker: House, stream: bool) -> None:
    reply: Any = client(thinker.url, KEY).chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": RISKY_ANSWER}], logprobs=True, stream=stream
    )
    choices = [choice for part in (reply if stream else [reply]) for choice in part.choices]
    items = [item for choice in choices if choice.logprobs for item in choice.logprobs.content]
    risks = [item.model_extra["risk"] for item in items]
    assert [risk is None for risk in risks] == [True] * TOKENS + [False] * (len(risks) - TOKENS - 1) + [True]
