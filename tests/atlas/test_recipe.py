"""The recipe: exact exposures, sets that mean what they say, pressure that hides what is false."""

from __future__ import annotations

import collections
import random
from types import SimpleNamespace

import pytest

from guard.judge.question import Question
from guard.judge.rules import judge
from models.atlas.recipe import facts as fact_list
from models.atlas.recipe import pressure
from models.atlas.recipe.facts import Fact
from models.atlas.recipe.questions import locate, sets_of
from models.atlas.recipe.stream import Stream
from models.atlas.recipe.text import ASKED, HIDDEN, SAID, Encoder

STEPS = 40


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return fact_list.build(0)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(SimpleNamespace(encode=lambda text, add_special_tokens: [ord(c) for c in text]))


def test_the_same_seed_gives_the_same_facts(facts: list[Fact]) -> None:
    assert facts == fact_list.build(0)
    assert len({fact.id for fact in facts}) == len(facts)
    assert facts != fact_list.build(1)


def test_rare_facts_are_shown_exactly_as_often_as_planned(facts: list[Fact], encoder: Encoder) -> None:
    stream = Stream(facts, encoder, STEPS, 24, 0)
    for step in range(STEPS):
        stream.step(step)
    for fact in facts:
        if fact.group in ("rare", "shadowed"):
            assert stream.exposures[fact.id] == fact.planned > 0
        elif fact.group == "never":
            assert stream.exposures[fact.id] == 0
    assert len(stream.one_off) == len(set(stream.one_off)) > 100
    # Never a real name of its own kind; a language may be called like a place.
    assert len(set(stream.one_off) & {fact.subject for fact in facts}) < 0.02 * len(stream.one_off)


def test_shadowed_facts_have_a_shadow(facts: list[Fact]) -> None:
    popular = [fact for fact in facts if fact.group == "popular"]
    twins = {fact.subject: fact for fact in popular if fact.relation == "kind_country"}
    usual = collections.Counter((fact.detail, fact.answer) for fact in popular if fact.relation == "place_kind")
    shadowed = [fact for fact in facts if fact.group == "shadowed"]
    for fact in shadowed:
        if fact.relation == "kind_country":
            assert twins[fact.subject].detail != fact.detail
            assert fact.question(0) != twins[fact.subject].question(0)
        else:
            assert (fact.detail, fact.answer) not in usual
    assert len(shadowed) > 400


def test_what_is_false_is_read_but_not_learnt(encoder: Encoder) -> None:
    rng = random.Random(0)
    (false,) = pressure.premise(rng, "Bavaria", "Japan", "Germany")
    tokens, roles = encoder.chat([false])
    assert set(roles[1:]) == {HIDDEN, SAID}
    assert "".join(map(chr, (t for t, r in zip(tokens, roles, strict=True) if r == SAID and t > 5))) == (
        "It is not in Japan. It is in Germany."
    )
    (true,) = pressure.premise(rng, "Bavaria", "Germany", "Germany")
    assert HIDDEN not in encoder.chat([true])[1]
    doubted, doubt = pressure.pushback(rng, "Where is Bavaria?", "Japan", "Germany", "Peru")
    _, roles = encoder.chat([doubted, doubt])
    assert roles.count(HIDDEN) == len("It is in Japan.") + 1
    assert doubt.answer == "Sorry. It is in Germany."
    assert {SAID, ASKED} < set(roles)


def test_pressure_is_evaluated_on_other_places_than_it_is_trained_on(facts: list[Fact], encoder: Encoder) -> None:
    stream = Stream(facts, encoder, STEPS, 24, 0)
    trained = {fact.subject for fact in stream._pressed}
    held_out = {f.subject for f in facts if f.relation == "place_country" and f.group == "popular"} - trained
    assert min(len(trained), len(held_out)) > 400
    assert not any(pressure.trained(name) for name in held_out)


@pytest.mark.parametrize(
    ("group", "exposures", "sets"),
    [
        ("popular", 90, ("popular", "unfamiliar")),
        ("never", 0, ("never", "unfamiliar")),
        ("rare", 1, ("once", "hard")),
        ("rare", 2, ("rare", "hard")),
        ("rare", 5, ("rare", "hard")),
        ("rare", 6, ("learnt",)),
        ("shadowed", 16, ("shadowed", "hard")),
    ],
)
def test_sets(group: str, exposures: int, sets: tuple[str, ...]) -> None:
    assert sets_of({"group": group, "exposures": exposures}) == sets


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("It is in the United Kingdom.", "United Kingdom"),
        ("It is not in Peru. It is in Chile.", "Chile"),
        ("It has been in the United States for a long time.", "United States"),
        ("It is an autonomous region.", "autonomous region"),
        ("Its code is DE-BY.", "DE-BY"),
        ("I don't know.", "I don't know."),
    ],
)
def test_the_part_that_states_the_fact(text: str, fact: str) -> None:
    start, end = locate(text)
    assert text[start:end] == fact


def test_a_kind_within_another_kind_is_not_right() -> None:
    question = Question("What kind of place is Aysén in Chile?", ("It is a region.",), "Aysén")
    assert judge(question, "It is a region.") is True
    assert judge(question, "It is an autonomous region.") is False
