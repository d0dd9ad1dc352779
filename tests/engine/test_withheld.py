"""Withheld answers on the real model: the attacks of ``bench.withheld``, and a rule that no answer of any API breaks.

The rule: by whatever field, what leaves in abstain mode belongs to tokens that were scored and passed. What was drawn
is recorded below the guard, where vLLM's own engine hands it over; whether it was to pass is found out on another way
than the guard's, by reading the whole turn as given text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from app.server.app import guarded_app, plan
from app.settings import ATLAS, Settings
from bench import withheld
from guard.engine.context import RequestContext, use_context
from guard.policy import Fail, Hold, Mode, Policy
from models.atlas.recipe.questions import load_ledger
from tests.engine.harness import Harness
from tests.scripted.server import forget_metrics

LEDGER = load_ledger(ATLAS)
THRESHOLD = 0.5
FABRICATED = LEDGER["fabricated"]["place_country"][:12]
KNOWN = [f["subject"] for f in LEDGER["facts"] if f["relation"] == "place_country" and f["group"] == "popular"][:12]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"


class Guarded:
    """The whole app over a real engine, in this process. drawn: what the engine drew for each request, by choice."""

    def __init__(self) -> None:
        forget_metrics()
        asked = Settings(
            mode=Mode.ABSTAIN,
            fail=Fail.CLOSED,
            threshold=THRESHOLD,
            loosest_mode=Mode.SCORE,
            loosest_hold=Hold.NONE,
            max_threshold=1.0,
        )
        self.harness = Harness(lambda: guarded_app(plan(asked, [])))
        self.app = self.harness.engine
        self.engine = self.app.state.engine_client
        self.drawn: list[dict[str, Any]] = []
        inner = self.engine._engine.generate

        def recording(prompt: Any, params: Any, request_id: str, **more: Any) -> Any:
            if params.extra_args["hguard"]["start"] is not None:  # given text is read
                return inner(prompt, params, request_id, **more)
            note = {"prompt": list(prompt["prompt_token_ids"]), "ids": {}, "finish": {}}
            self.drawn.append(note)
            cumulative = params.output_kind.name != "DELTA"

            async def outputs() -> Any:
                stream = inner(prompt, params, request_id, **more)
                try:
                    async for output in stream:
                        for one in output.outputs:
                            ids = note["ids"].setdefault(one.index, [])
                            ids[:] = list(one.token_ids) if cumulative else [*ids, *one.token_ids]
                            note["finish"][one.index] = one.finish_reason, one.stop_reason
                        yield output
                finally:
                    await stream.aclose()

            return outputs()

        self.engine._engine.generate = recording

    def post(self, path: str, json: Any) -> httpx.Response:
        async def go() -> httpx.Response:
            over = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=over, base_url="http://real") as http:
                return await http.post(path, json=json)

        return self.harness.run(go())

    def get(self, path: str) -> httpx.Response:
        async def go() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://real") as http:
                return await http.get(path)

        return self.harness.run(go())

    def risk(self, turn: list[int], before: list[int], ended: bool) -> float:
        """Of the turn as given text; the last token's own score is left out where nothing was drawn after it."""

        async def go() -> float:
            with use_context(RequestContext(Policy(Mode.SCORE, THRESHOLD))):
                signals = await self.engine.measure(before, turn, 1.0, f"oracle-{len(self.drawn)}")
            if not ended:
                signals["neurons"][-1] = np.nan
            return float(self.engine.readout.risk(signals)[0])

        return self.harness.run(go())


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    made = Guarded()
    yield made
    made.harness.close()
    forget_metrics()


# -- attacks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name in withheld.ATTACKS if not {"pieces", "temperature", "compared"} & set(name.split())]
)
def test_no_attack_by_a_field_brings_out_a_withheld_answer(guarded: Guarded, name: str) -> None:
    caller = withheld.Caller(guarded)
    targets = list(withheld.withheld(caller, LEDGER["fabricated"]["place_country"], 4))
    assert len(targets) == 4
    for question, answer in targets:
        found = withheld.built(caller, withheld.ATTACKS[name], question)
        assert withheld.country(answer) not in found
        assert found in ("", withheld.OPENING) or answer.startswith(found)
    assert caller.bypassed() == 0


def test_a_turn_is_scored_as_a_whole(guarded: Guarded) -> None:
    """What a caller put into the assistant's mouth, and what the model adds to it, have the risk of both together."""
    caller = withheld.Caller(guarded)
    seen = 0
    for place in [*FABRICATED[:6], *KNOWN[:6]]:
        question, score = withheld.QUESTION.format(place), {"mode": "score", "tokens": True}
        whole = caller.chat(question, "", hallucination=score)
        text = whole["message"]["content"]
        expected = whole["hallucination"]["results"][0]
        said = text[: text.rindex(" ")]
        rest = caller.chat(question, said, hallucination=score)
        if said + rest["message"]["content"] != text or expected["scored_tokens"] > 8:
            continue  # tokenised otherwise, or of several windows
        found = rest["hallucination"]["results"][0]
        assert found["risk"] == pytest.approx(expected["risk"], rel=1e-3)
        assert "".join(one["token"] for one in found["tokens"]) == rest["message"]["content"]
        assert found["scored_tokens"] == len(found["tokens"]) < expected["scored_tokens"]
        assert found["peak"]["end"] <= found["scored_tokens"]
        seen += 1
    assert seen >= 6


@pytest.mark.parametrize("hold", ["none", "window", "answer"])
def test_a_turn_that_is_risky_goes_no_further(guarded: Guarded, hold: str) -> None:
    caller = withheld.Caller(guarded)
    (question, answer), *_ = withheld.withheld(caller, LEDGER["fabricated"]["place_country"], 1)
    for length in (1, 2, 32):
        choice = caller.chat(question, answer.rstrip("."), max_tokens=length, hallucination={"hold": hold})
        assert choice["finish_reason"] == "content_filter", "one more token does not make it right"


# -- the rule ----------------------------------------------------------------------------------------------------------


TOKENIZER = Tokenizer.from_file(str(ATLAS / "tokenizer.json"))


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


(END,) = ids_of("</s>")
EVERY = list(range(TOKENIZER.get_vocab_size()))
FORCED: list[dict[str, Any]] = [
    {"logit_bias": {"1": 100}},
    {"allowed_token_ids": [END]},
    {"stop_token_ids": EVERY},
    {"stop_token_ids": EVERY, "include_stop_str_in_output": True},
    {"stop_token_ids": EVERY, "ignore_eos": True, "include_stop_str_in_output": True, "skip_special_tokens": False},
    {"stop": ["i", "t", "s"], "include_stop_str_in_output": True},
    {"allowed_token_ids": ids_of(" the")},
    {"allowed_token_ids": [END, *ids_of("It is")]},
    {"logit_bias": {str(ids_of(" is")[0]): 100}, "max_tokens": 1},
]
LOOSE: list[dict[str, Any]] = [
    {},
    {"max_tokens": 1},
    {"max_tokens": 2},
    {"max_tokens": 3},
    {"temperature": 1.5, "seed": 3},
    {"min_tokens": 3, "max_tokens": 4},
    {"bad_words": [" in"]},
    {"ignore_eos": True, "max_tokens": 12},
    {"repetition_penalty": 1.8},
]


@st.composite
def requests(draw: Any) -> tuple[str, dict[str, Any]]:
    """A request of any API. Two of three force how the answer ends, or what it may say."""
    path = draw(st.sampled_from([CHAT, CHAT, COMPLETIONS, COMPLETIONS, RESPONSES, MESSAGES]))
    place = draw(st.sampled_from([*FABRICATED, *KNOWN]))
    said = draw(st.sampled_from(["", "", "It", "It is in", "It is in the"]))
    question = withheld.QUESTION.format(place)
    chosen = draw(st.sampled_from(FORCED)) if draw(st.integers(0, 2)) else draw(st.sampled_from(LOOSE))
    body: dict[str, Any] = {"model": "atlas", "max_tokens": 24, "temperature": 0, **chosen}
    options = {
        "hold": draw(st.sampled_from(["none", "window", "answer"])),
        "tokens": draw(st.booleans()),
        "explain": draw(st.booleans()),
    }
    options["fallback"] = draw(st.sampled_from(["refusal", "message"]))
    body["hallucination"] = options
    body["stream"] = draw(st.booleans())
    if path in (CHAT, COMPLETIONS):
        body["n"] = draw(st.sampled_from([1, 1, 2]))
        if body["n"] > 1:
            body |= {"temperature": 1.0, "seed": 7}  # several greedy answers would be one
        body["return_token_ids"] = draw(st.booleans())
        body["return_tokens_as_token_ids"] = draw(st.booleans())
        if not body["stream"]:
            body["prompt_logprobs"] = draw(st.sampled_from([None, 0, 3]))
    likely = draw(st.sampled_from([None, 0, 5, 20]))
    if path == CHAT:
        body["messages"] = [{"role": "user", "content": question}]
        if said:
            body["messages"].append({"role": "assistant", "content": said})
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        if likely is not None:
            body |= {"logprobs": True, "top_logprobs": likely}
            if draw(st.booleans()):
                body["logprob_token_ids"] = [5, 300, 301]
    elif path == COMPLETIONS:
        body["prompt"] = f"<s><|user|>{question}<|assistant|>{said}"
        if likely is not None:
            body["logprobs"] = likely
        body["echo"] = draw(st.booleans())
        if body["echo"] and draw(st.booleans()):
            body["max_tokens"] = 0
    elif path == RESPONSES:
        body["input"] = question
        body["max_output_tokens"] = body.pop("max_tokens")
        body["enable_response_messages"] = draw(st.booleans())
        if likely is not None:
            body |= {"include": ["message.output_text.logprobs"], "top_logprobs": likely}
    else:
        body["messages"] = [{"role": "user", "content": question}]
    return path, body


def frames(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


PROMPT_FIELDS = {"prompt_logprobs", "prompt_token_ids", "input_messages"}


def tokens_in(content: Any, at: str = "") -> Iterator[int]:
    """Every token that any field names, by id or by text, but for those that are about the prompt alone."""
    if isinstance(content, list):
        if at in ("token_ids", "tokens") and content and all(isinstance(one, int) for one in content):
            yield from content
        elif at == "tokens" and content and all(isinstance(one, str) for one in content):
            yield from (spelled(one) for one in content)
        else:
            for one in content:
                yield from tokens_in(one, at)
    elif isinstance(content, dict):
        if at == "top_logprobs" and "token" not in content:
            yield from (spelled(one) for one in content)
        if "token" in content and "logprob" in content:
            yield spelled(content["token"])
        if isinstance(content.get("stop_reason"), int):
            yield content["stop_reason"]
        for key, value in content.items():
            if key not in PROMPT_FIELDS and key != "hallucination":
                yield from tokens_in(value, key)


BY_TEXT = {TOKENIZER.decode([i], skip_special_tokens=False): i for i in range(TOKENIZER.get_vocab_size())}


def spelled(token: str) -> int:
    if token.startswith("token_id:"):
        return int(token.removeprefix("token_id:"))
    return BY_TEXT.get(token, -1)


def texts_in(path: str, contents: list[Any]) -> dict[int, str]:
    """The text of each choice, or of the one answer."""
    found: dict[int, str] = {}
    for content in contents:
        if path in (CHAT, COMPLETIONS):
            for choice in content.get("choices", []):
                part = choice.get("message") or choice.get("delta") or {"content": choice.get("text")}
                found[choice["index"]] = found.get(choice["index"], "") + (part.get("content") or "")
        elif content.get("type") == "response.output_text.delta":
            found[0] = found.get(0, "") + content["delta"]
        elif content.get("type") == "content_block_delta":
            found[0] = found.get(0, "") + content["delta"].get("text", "")
        elif path == RESPONSES and content.get("object") == "response":
            parts = [part for item in content["output"] for part in item.get("content") or []]
            found[0] = "".join(part.get("text", "") for part in parts)
        elif path == MESSAGES and content.get("type") == "message" and "usage" in content:
            found[0] = found.get(0, "") + "".join(block.get("text", "") for block in content["content"])
    return found


@pytest.fixture(scope="module")
def drawn_ends() -> dict[str, int]:
    return {"empty": 0, "withheld": 0, "passed": 0}


@settings(max_examples=80)
@given(asked=requests())
def test_what_leaves_was_scored_and_passed(
    guarded: Guarded, drawn_ends: dict[str, int], asked: tuple[str, dict[str, Any]]
) -> None:
    path, body = asked
    guarded.drawn.clear()
    reply = guarded.post(path, body)
    assert reply.status_code == 200, reply.text
    contents = frames(reply.text) if body["stream"] else [reply.json()]
    (note,) = guarded.drawn
    allowed, unsure = {END}, False
    texts = texts_in(path, contents)
    header = len(note["prompt"]) - note["prompt"][::-1].index(ids_of("<|assistant|>")[0])
    before, given_part = note["prompt"][:header], note["prompt"][header:]
    prompt_text = body.get("prompt", "") if body.get("echo") and not body.get("return_token_ids") else ""
    unshown = body.get("echo") and body["max_tokens"] == 0
    for index, ids in note["ids"].items():
        finish, stop = note["finish"][index]
        ended = finish == "stop" and stop is None
        said = ids[:-1] if ended else ids
        if unshown or not said:
            drawn_ends["empty"] += 1
            assert texts.get(index, "") == prompt_text
            continue
        if finish is None:  # ended by the guard, at a window
            passes, risk = False, 1.0
        else:
            risk = guarded.risk([*given_part, *said], before, ended)
            passes = risk < THRESHOLD
        unsure = unsure or abs(risk - THRESHOLD) < 0.01
        flows = body["stream"] and body["hallucination"]["hold"] != "answer"
        drawn_ends["passed" if passes else "withheld"] += 1
        if passes or flows:
            allowed |= set(said)
        elif not unsure:
            assert texts.get(index, "") in ("", Settings().fallback_text)
    if body.get("echo"):
        allowed |= set(note["prompt"])
    if not unsure:
        named = {token for content in contents for token in tokens_in(content)}
        assert named <= allowed, [TOKENIZER.decode([one]) for one in named - allowed if one >= 0]
    for position in prompt_positions(contents):
        assert set(position) <= {str(one) for one in note["prompt"]}
        assert len(position) == 1


def prompt_positions(contents: list[Any]) -> Iterator[dict[str, Any]]:
    for content in contents:
        for holder in [content, *content.get("choices", [])]:
            yield from (one for one in holder.get("prompt_logprobs") or [] if one)


def test_all_kinds_of_ends_were_drawn(drawn_ends: dict[str, int]) -> None:
    """After the property: what never happened proves nothing."""
    assert min(drawn_ends.values()) >= 8, drawn_ends
