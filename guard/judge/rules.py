"""Is an answer right? By rule, or by asking another model (``RemoteJudge``).

The rule reads words (``words.read``), and looks for an accepted answer among those of the answer. What it finds does
not count where the answer denies it, or only repeats the question. It is made for short answers; what takes
understanding (synonyms that nobody listed, inflected names, a second sentence that takes the first back) takes a model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from guard.judge.declines import denies, rest_of
from guard.judge.matching import Accepted, Spot, accepted_words, equal, has_symbols, spots_of
from guard.judge.question import Question
from guard.judge.remote import RemoteJudge
from guard.judge.words import ARTICLES, STOP, Word, listed, normalise, read, symbols

__all__ = ["RemoteJudge", "judge", "normalise"]

_BREAKS = re.compile(r"[.,;:!?\n()\[\]…。、，；！？]|\s-+\s|--")
_COPULAS = listed("is was are were be been will")
_NOT = listed(
    "not no never neither nor without except cannot unlike nicht kein keine keinen pas no non nao niet geen inte ikke "
    "nie не нет ليس ليست לא"
)
_TWO_NOT = frozenset(
    {("other", "than"), ("rather", "than"), ("instead", "of"), ("apart", "from"), ("different", "from")}
)
_NOT_HAN = ("不是", "不在", "不叫", "不为", "並非", "并非", "没有", "沒有")
# "not only", "no doubt": what follows is affirmed.
_AFFIRMS = listed("only just merely sure doubt question wonder until later less solo solamente seulement nur")
_TURNS = listed("but rather however until because although though while since sondern mais sino pero ma aber")
_NOT_AFTER = re.compile(
    r"(?:で|じゃ)は?(?:ない|なく|ありません)|では?(?:ない|なく|ありません)|じゃ(?:ない|なく|ありません)"
    r"|(?:이|가|은|는)?아[니닙]|不是"
)
_NOT_BEHIND = frozenset({"degil", "degildir", "नहीं"})  # within three words behind
_OR = listed("or oder ou o или або veya czy או أو または 或者 或 또는")
_NEAR_OR = STOP - {"or", "and"} | {"maybe", "perhaps", "possibly", "probably", "either"}
# "or rather", "5 or more": no second answer.
_NO_CHOICE = listed(
    "rather more less so simply just also sometimes better later earlier fewer other another any not about around "
    "formally officially formerly commonly something anything"
)
_WATERS = listed("sea ocean gulf bay strait channel")
_OTHER_NAMES = frozenset(
    {
        ("equatorial", "guinea"),
        ("guinea", "bissau"),
        ("south", "sudan"),
        ("northern", "ireland"),
        ("american", "samoa"),
        ("west", "virginia"),
        ("south", "wales"),
    }
)
_EMPTY = frozenset({"answer", "correct", "called", "name", "named", "known", "title"})
_ITEM = 3  # most words of one alternative in a list
_CONTEXT = 3  # words of the question before a name that an answer repeats


def judge(question: Question, answer: str) -> bool | None:
    """True when the answer says an accepted one, False when it says something else, None when it declines.

    It declines when it says that it does not know, when it says nothing at all, when it names alternatives of which one
    is accepted ("Paris or London"), and, where nothing is accepted, when it says that there is no such thing.
    """
    accepted = accepted_words(question.accepted)
    said, tail = read(answer)
    if not said:
        wanted = {symbols(one) for one in question.accepted if not read(one)[0]}
        return symbols(answer) in wanted if wanted and answer.strip(" .") else None
    if any(equal(one, said) for one in accepted):
        return True
    rest = rest_of(answer)
    if rest is None and any(one.declines for one in accepted):
        accepted, rest = [one for one in accepted if one.declines], answer
        if not list(spots_of(accepted, said, tail)):
            return None
    if rest is None or (not accepted and denies(rest)):
        return None
    if rest is not answer:
        said, tail = read(rest)
    if not accepted and _empty(said):
        return None
    if any(has_symbols(symbols(one), symbols(rest)) for one in question.accepted if not read(one)[0]):
        return True
    spots = list(spots_of(accepted, said, tail))
    asked = {word.text for word in read(question.text)[0]}
    live = [spot for spot in spots if not _denied(said, tail, spot) and not _longer_name(said, spot, asked)]
    live = _new(question, accepted, said, live)
    if not live:
        return None if _empty(said) else False
    if all(_one_of_several(said, spots, spot) for spot in live):
        return None
    return True


def _empty(said: Sequence[Word]) -> bool:
    return all(word.text in ARTICLES for word in said)


# -- what is denied ----------------------------------------------------------------------------------------------------


def _denied(said: Sequence[Word], tail: str, spot: Spot) -> bool:
    return _denied_before(said, spot.first) or _denied_behind(said, tail, spot.last)


def _denied_before(said: Sequence[Word], first: int) -> bool:
    """Whether "not" governs what starts at this word: in the same clause, with no verb in between."""
    copula = False
    for i in range(first, -1, -1):
        if i < first:
            text = said[i].text
            behind = said[i + 1].text
            if text in _TURNS:
                return False
            if text in _NOT or text.endswith("n't"):
                if behind in _AFFIRMS or (text == "no" and behind in ("one", "longer") and not copula):
                    return behind == "longer"
                if copula:
                    return behind in ("true", "correct", "right", "accurate")
                return True
            if (text, behind) in _TWO_NOT and i + 1 < first:
                return not (i and said[i - 1].text in ("none", "no", "nothing"))
            if text in _COPULAS:
                copula = True
        if _BREAKS.search(said[i].gap):
            break
    joined = "".join(word.text for word in said[max(0, first - 6) : first] if "\u3400" <= word.text[0] <= "\u9fff")
    return any(no in joined for no in _NOT_HAN)


def _denied_behind(said: Sequence[Word], tail: str, last: int) -> bool:
    clause: list[str] = []
    for word in said[last + 1 :]:
        if _BREAKS.search(word.gap):
            break
        clause.append(word.text)
    if len(clause) > 1 and clause[0] in _COPULAS and (clause[1] in ("not", "incorrect", "wrong", "false")):
        return len(clause) < 3 or clause[2] not in _AFFIRMS
    if clause and clause[0] in ("isn't", "wasn't", "aren't", "weren't"):
        return len(clause) < 2 or clause[1] not in _AFFIRMS
    if any(text in _NOT_BEHIND for text in clause[:3]):
        return True
    return _NOT_AFTER.match("".join(clause[:8])) is not None


# -- what is part of another name --------------------------------------------------------------------------------------


def _longer_name(said: Sequence[Word], spot: Spot, asked: set[str]) -> bool:
    """Whether it is part of the name of something else: the South China Sea, New Mexico. Not where it was asked for."""
    parts = []
    if spot.last + 1 < len(said) and not said[spot.last + 1].gap.strip(" -"):
        behind = said[spot.last + 1]
        parts.append((behind, behind.text in _WATERS or (said[spot.last].text, behind.text) in _OTHER_NAMES))
    if spot.first and not said[spot.first].gap.strip(" -"):
        before = said[spot.first - 1]
        parts.append((before, before.text == "new" or (before.text, said[spot.first].text) in _OTHER_NAMES))
        if before.text == "of" and spot.first > 1:
            parts.append((said[spot.first - 2], said[spot.first - 2].text in _WATERS))
    return any(other and word.raw[:1].isupper() and word.text not in asked for word, other in parts)


# -- what only repeats the question ------------------------------------------------------------------------------------


def _new(question: Question, accepted: Sequence[Accepted], said: Sequence[Word], spots: list[Spot]) -> list[Spot]:
    """Those that answer, where the question itself contains an accepted answer.

    "Mexico City is in Spain", asked for the country of Mexico City, does not say Mexico. A question that offers a
    choice may be answered in its own words.
    """
    asked, end = read(question.text)
    if not spots or any(word.text in _OR for word in asked):
        return spots
    own = list(spots_of(accepted, asked, end))
    if not own:
        return spots
    known = {word.text for word in asked} | STOP | _EMPTY
    repeated = [spot for spot in spots if any(_repeats(said, spot, asked, one, known) for one in own)]
    if len(repeated) < len(spots):
        return [spot for spot in spots if spot not in repeated]
    # Nothing else is said: then the name is the answer, however much of it the question has.
    inside = {i for spot in repeated for i in _widened(said, spot, asked)}
    return [] if any(i not in inside and word.text not in STOP for i, word in enumerate(said)) else spots


def _repeats(said: Sequence[Word], spot: Spot, asked: Sequence[Word], own: Spot, known: set[str]) -> bool:
    if [w.text for w in said[spot.first : spot.last + 1]] != [w.text for w in asked[own.first : own.last + 1]]:
        return False
    # It stands beside the same name: Mexico City.
    for here, there in ((spot.first - 1, own.first - 1), (spot.last + 1, own.last + 1)):
        if 0 <= here < len(said) and 0 <= there < len(asked):
            text = said[here].text
            if text == asked[there].text and text not in STOP:
                return True
    # The same words lead up to it: the capital of Luxembourg.
    before = [word.text for word in said[max(0, spot.first - _CONTEXT) : spot.first]]
    led = [word.text for word in asked[max(0, own.first - _CONTEXT) : own.first]]
    shared = []
    while before and led and before[-1] == led[-1]:
        shared.append(before.pop())
        led.pop()
    if any(text not in STOP for text in shared):
        return True
    # It is what the sentence is about, and the sentence says something new of it: Singapore is in Malaysia.
    start = max((i for i in range(spot.first + 1) if i == 0 or re.search(r"[.!?\n]", said[i].gap)), default=0)
    if any(word.text in _COPULAS for word in said[start : spot.first]):
        return False
    behind = said[spot.last + 1 :]
    if not behind or behind[0].gap.strip() or behind[0].text not in _COPULAS | {"has", "had", "lies", "can"}:
        return False
    return any(word.text not in known for word in behind)


def _widened(said: Sequence[Word], spot: Spot, asked: Sequence[Word]) -> range:
    """The spot with the words around it that stand around it in the question, too."""
    pairs = {(one.text, two.text) for one, two in pairwise(asked)}
    first, last = spot.first, spot.last
    while first and (said[first - 1].text, said[first].text) in pairs:
        first -= 1
    while last + 1 < len(said) and (said[last].text, said[last + 1].text) in pairs:
        last += 1
    return range(first, last + 1)


# -- what is one of several --------------------------------------------------------------------------------------------


def _one_of_several(said: Sequence[Word], spots: Sequence[Spot], spot: Spot) -> bool:
    """Whether "or" puts it beside something that is not accepted. "Clay, or Ali" and "(or Ali)" are other names."""
    i = spot.first - 1
    while i >= 0 and said[i].text in _NEAR_OR and not _BREAKS.search(said[i + 1].gap):
        i -= 1
    if i > 0 and said[i].text in _OR and not _other_name(said, i):
        start = i
        while start and not re.search(r"[.;:!?\n]", said[start].gap):
            start -= 1
        if not any(start <= one.first and one.last < i for one in spots):
            return True
    behind = _or_behind(said, spot.last)
    if behind is not None and not _other_name(said, behind):
        end = behind + 1
        while end < len(said) and not re.search(r"[.;:!?\n]", said[end].gap):
            end += 1
        return not any(spot.last < one.first and one.last < end for one in spots)
    return False


def _or_behind(said: Sequence[Word], last: int) -> int | None:
    """The "or" right behind a word, or at the end of the list that it is in: Paris, London, or Rome."""
    words = 0  # of one item
    for i in range(last + 1, len(said) - 1):
        if re.search(r"[.;:!?\n()]", said[i].gap):
            return None
        if said[i].text in _OR:
            return i
        words = 1 if "," in said[i].gap else words + 1
        if words > _ITEM or (i == last + 1 and "," not in said[i].gap):
            return None
    return None


def _other_name(said: Sequence[Word], i: int) -> bool:
    if "(" in said[i].gap or said[i + 1].text in _NO_CHOICE:
        return True
    commas = 0
    for word in said[i::-1]:
        commas += "," in word.gap
        if re.search(r"[.;:!?\n]", word.gap):
            break
    return "," in said[i].gap and commas == 1
