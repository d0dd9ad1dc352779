"""Where an accepted answer stands in an answer: as whole words, whichever way they are written together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from guard.judge.declines import rest_of
from guard.judge.words import ARTICLES, STOP, Word, read


@dataclass(frozen=True, slots=True)
class Accepted:
    """words: without articles. bare, whole: squeezed without and with articles. declines: it reads as a decline."""

    words: tuple[Word, ...]
    bare: str
    whole: str
    declines: bool


@dataclass(frozen=True, slots=True)
class Spot:
    """The words ``first`` to ``last`` (inclusive) of the answer are an accepted one."""

    first: int
    last: int


@lru_cache(maxsize=1024)
def accepted_words(answers: tuple[str, ...]) -> Sequence[Accepted]:
    """Each once. One that is another in small letters (TriviaQA lists both) would take its capitals away."""
    found: dict[str, Accepted] = {}
    for answer in sorted(answers, key=lambda one: one == one.casefold()):
        words, _ = read(answer)
        bare = tuple(word for word in words if not word.article)
        if bare:
            one = Accepted(bare, _squeezed(bare)[0], _squeezed(words)[0], rest_of(answer) is None)
            found.setdefault(one.bare, one)
    return tuple(found.values())


def equal(one: Accepted, said: Sequence[Word]) -> bool:
    """Whether the answer is this accepted one and nothing else."""
    bare = [word for word in said if not word.article]
    if _squeezed(bare)[0] != one.bare and _squeezed(said)[0] != one.whole:
        return False
    return len(one.words) > 1 or not _other_case(one.words[0].raw, bare[0].raw)


def spots_of(accepted: Sequence[Accepted], said: Sequence[Word], tail: str) -> Iterator[Spot]:
    """Every place of an accepted answer among the words of an answer; ``tail``: what stands behind the last of them."""
    everything = list(range(len(said)))
    readings = [[i for i in everything if not said[i].article]]
    if len(readings[0]) < len(said):
        readings.append(everything)
    squeezed = [_squeezed([said[i] for i in reading]) for reading in readings]
    for one in accepted:
        for which, reading in enumerate(readings):
            target = one.whole if which else one.bare
            text, starts, ends = squeezed[which]
            at = text.find(target)
            while at >= 0:
                if at in starts and at + len(target) in ends:
                    spot = Spot(reading[starts[at]], reading[ends[at + len(target)]])
                    if _distinct(one, said, tail, spot):
                        yield spot
                at = text.find(target, at + 1)


def _squeezed(words: Sequence[Word]) -> tuple[str, dict[int, int], dict[int, int]]:
    """Words without blanks (U.S. and US, ping-pong and ping pong are one), except where one would read another: between
    numbers and around small words. With it: where each word starts and ends, as character to word."""
    text, starts, ends = "", {}, {}
    for i, word in enumerate(words):
        if i and (_apart(words[i - 1]) or _apart(word) or (text[-1].isdecimal() and _numeric(word.text))):
            text += " "
        starts[len(text)] = i
        text += word.text
        ends[len(text)] = i
    return text, starts, ends


def _apart(word: Word) -> bool:
    return word.text in STOP


def _numeric(text: str) -> bool:
    return text.lstrip("-")[:1].isdecimal()


def _distinct(one: Accepted, said: Sequence[Word], tail: str, spot: Spot) -> bool:
    """Whether a word that is short or says nothing by itself is meant: Na, K, US, It."""
    if len(one.words) > 1 or spot.first != spot.last:
        return True
    wanted, word = one.words[0], said[spot.first]
    if len(wanted.text) > 2 and wanted.text not in STOP:
        return True
    if not wanted.text.isascii() or wanted.text.isdecimal():
        return True
    ends = spot.last == len(said) - 1
    after = tail if ends else said[spot.last + 1].gap
    if wanted.text in ("no", "yes") and spot.first == 0:
        return ends or bool(after.strip())
    if wanted.text in ARTICLES:
        return not word.article
    if wanted.text in STOP:
        quoted = any(mark in word.gap for mark in "\"'(*") and any(mark in after for mark in "\"')*")
        starts = spot.first == 0 or bool(re.search(r"[.!?\n]", word.gap))
        same = word.raw == wanted.raw
        return same and (quoted or ends or (word.raw != word.raw.lower() and not starts and word.raw != "I"))
    if len(wanted.text) == 1:
        return word.raw == wanted.raw
    return not _other_case(wanted.raw, word.raw)


def _other_case(wanted: str, raw: str) -> bool:
    """Co is not CO; co may be either."""
    return len(wanted) == 2 and wanted[0].isupper() and raw[0].isupper() and wanted != raw and wanted.isalpha()


def has_symbols(wanted: tuple[str, ...], said: tuple[str, ...]) -> bool:
    """Whether these stand among those, one behind the other."""
    n = len(wanted)
    return n > 0 and any(said[i : i + n] == wanted for i in range(len(said) - n + 1))
