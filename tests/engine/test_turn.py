"""Where the assistant's turn begins in a prompt."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from app.settings import ATLAS
from guard.engine.prompt.turn import Turns


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ATLAS)


@pytest.fixture(scope="module")
def turns(tokenizer: Any) -> Turns:
    return Turns.of(tokenizer, None, frozenset([tokenizer.eos_token_id]))


ASKED = "<s><|user|>Where is Kandy?"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"{ASKED}<|assistant|>", ""),
        (f"{ASKED}<|assistant|>", "It is in the"),
        (f"{ASKED}<|assistant|>It is in Sri Lanka.</s><|user|>And Bern?<|assistant|>", "It"),
        (f"{ASKED}<|assistant|></s>", "It is in"),
        (f"{ASKED}<|assistant|>It is<|assistant|>", " in"),
        (ASKED, ""),
        ("Where is Kandy? It is in", ""),
    ],
)
def test_the_last_turn(tokenizer: Any, turns: Turns, before: str, after: str) -> None:
    ids = tokenizer.encode(before + after, add_special_tokens=False)
    assert turns.start(ids) == len(tokenizer.encode(before, add_special_tokens=False))


def test_white_space_of_a_header_may_be_one_token_with_what_follows() -> None:
    texts = {0: "<|im_start|>", 1: "user", 2: "\n", 3: "a", 4: "assistant", 5: "It", 6: "\n\n"}

    def render(messages: Any, add_generation_prompt: bool, **_: Any) -> list[int]:
        return [0, 1, 2, 3, *([0, 4, 2] if add_generation_prompt else [])]

    spelled = SimpleNamespace(
        chat_template="x", apply_chat_template=render, decode=lambda ids: "".join(texts[i] for i in ids)
    )
    turns = Turns.of(spelled, None, frozenset([9]))
    assert turns.start([0, 1, 2, 3, 0, 4, 2]) == 7, "nothing was said yet: the line break is the template's"
    assert turns.start([0, 1, 2, 3, 0, 4, 2, 5]) == 7
    assert turns.start([0, 1, 2, 3, 0, 4, 6, 5]) == 6, "a line break of the caller's hides nothing"


def test_what_a_template_says_of_thinking_is_none_of_the_answer(tokenizer: Any) -> None:
    template = (
        "{{ messages[0]['content'] }}{% if add_generation_prompt %}<|assistant|>"
        "{% if enable_thinking is defined and not enable_thinking %}??\n\n{% endif %}{% endif %}"
    )
    turns = Turns.of(tokenizer, template, frozenset([tokenizer.eos_token_id]))
    for header in ("<|assistant|>", "<|assistant|>??\n\n"):
        before = tokenizer.encode(f"Where is Kandy?{header}", add_special_tokens=False)
        assert turns.start(before) == len(before)
        assert turns.start([*before, *tokenizer.encode("It", add_special_tokens=False)]) == len(before)


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no') }}", "{{ messages[0]['content'] }}"])
def test_without_a_header_there_is_no_turn(tokenizer: Any, template: str | None) -> None:
    bare = AutoTokenizer.from_pretrained(ATLAS)
    bare.chat_template = None
    assert Turns.of(bare, template, frozenset()).start([5, 6, 7]) == 3
