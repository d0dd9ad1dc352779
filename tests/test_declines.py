"""Which answers do nothing but decline: these pass whatever their risk, so nothing else may be among them."""

from __future__ import annotations

import pytest

from guard.declines import _MOST, LONGEST, _known, declines, may_decline
from guard.judge.declines import rest_of

SAID = [
    "I don't know.",
    "I don\u2019t know",
    "  I do not know the answer to that question. ",
    "Sorry, but I'm not sure.",
    "I'm sorry, but I don't have enough information to answer that question. Please provide more context.",
    "Unfortunately, I cannot answer that. I'm sorry.",
    "Ich wei\u00df es nicht.",
    "Je ne sais pas !",
    "Lo siento, no lo s\u00e9.",
    "\u62b1\u6b49\uff0c\u6211\u4e0d\u77e5\u9053\u3002",
    "\u308f\u304b\u308a\u307e\u305b\u3093\u3002",
    "I DON'T KNOW!!!",
    "... I don't know.",
    "I am sorry, but I'm not sure about that.",
    "I dont know",
    "\u092e\u0941\u091d\u0947 \u0928\u0939\u0940\u0902 \u092a\u0924\u093e\u0964",
    "Es tut mir leid, ich wei\u00df es nicht.",
]
MORE = [
    "",
    " . ",
    "Please provide more context.",  # asks, and does not say that it does not know
    "I'm sorry.",
    "I don't know. It is Paris.",
    "It is Paris. I don't know.",
    "I don't know, but it is Paris.",
    "I don't know Paris.",
    "I don't know the capital of France.",
    "I don't know. Paris",
    "I don't know.\nParis",
    "I don't know: Paris",
    "Paris? I don't know.",
    "I don't know\u200bParis",
    '{"answer": "I don\'t know."}',
    "<think>Paris</think>I don't know.",
    "I do know.",
    "I don't know. I don't know. I don't know. I don't know.",
    "I don't know. " * 1000,
]


@pytest.mark.parametrize("text", SAID)
def test_an_answer_that_only_declines(text: str) -> None:
    assert declines(text)
    assert rest_of(text) is None, "the judge sees it so, too"
    assert all(may_decline(text[:end]) for end in range(len(text) + 1) if text[:end].strip())


@pytest.mark.parametrize("text", MORE)
def test_anything_more_is_an_answer(text: str) -> None:
    assert not declines(text)


def test_an_answer_is_none_from_the_first_word_that_it_should_not_have() -> None:
    text = "I'm sorry, but I don't know. It is Paris."
    ends = [end for end in range(1, len(text) + 1) if may_decline(text[:end])]
    assert ends == list(range(1, len("I'm sorry, but I don't know. I") + 1))
    assert may_decline(""), "nothing was said yet"
    assert may_decline("我不\ufffd\ufffd"), "a character that lacks bytes"
    assert not may_decline("\ufffd" * 4)
    assert not may_decline("Z")
    assert not may_decline("I don't know. " * (_MOST + 1) + "I")


def test_what_may_stand_there_is_finite_and_names_nothing() -> None:
    """No digit, no capital: a sentence is of the list or it is not, and the list has no room for a name."""
    cores, closings = _known()
    for one in cores | closings:
        assert one == one.strip().casefold()
        assert not any(sign.isdigit() for sign in one)
        assert 0 < len(one) < 4 * LONGEST
    assert not cores & closings
    assert all(rest_of(one) is None for one in cores), "the judge reads each as a decline"
