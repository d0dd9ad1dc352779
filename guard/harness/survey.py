"""What a source of questions holds, said before an hour is spent on it: ``hguard data check``."""

from __future__ import annotations

import collections
import re
import statistics
from collections.abc import Callable, Iterator

from guard.harness.fields import READ
from guard.harness.questions import SHARES, Gathered, split
from guard.judge.declines import rest_of
from guard.judge.question import Question
from guard.judge.rules import judge
from guard.judge.words import read

_LONG = 12  # words of an accepted answer that hardly any answer contains as it stands
_SHOWN = 5  # places that are named
_GARBLED = re.compile("[\u00c2-\u00c3\u00e2][\u0080-\u00bf\u20ac\u2018-\u201d\u2122]|\ufffd")  # UTF-8 read as Latin-1
_SEVERAL = re.compile(r"[|;\n]|\S/\s|\s/\S| or ", re.IGNORECASE)
_LARGE = 0.2  # of all questions, about one thing


def survey(gathered: Gathered, seed: int) -> Iterator[tuple[str, str]]:
    """Lines for a person, each with its heading; the splits are those of ``seed``."""
    questions = gathered.questions
    file = gathered.file
    yield "read as", f"{file.format}, {file.encoding}" if file else f"the public set {gathered.source}"
    rows = (
        len(questions)
        + len(gathered.repeated)
        + len(gathered.contradicting)
        + len(gathered.unanswerable)
        + len(gathered.faults)
    )
    yield "questions", f"{len(questions)} of {rows} rows"
    if gathered.names:
        other = [name for name in gathered.names if name not in READ]
        text = ", ".join(name for name in gathered.names if name in READ)
        yield "fields", text + (f"; not read: {', '.join(other)}" if other else "")
    for line in gathered.notices():
        yield "dropped", line.removeprefix(f"{gathered.source}: ")
    if questions:
        yield from _counts(questions)
        for command, shares in SHARES.items():
            dealt = split(questions, shares, seed)
            parts = ", ".join(f"{name} {len(rows_)}" for name, rows_ in dealt.items())
            yield f"hguard {command}", f"{parts} (at most: what is answered consistently, seed {seed})"
        for what, found in _ODDITIES:
            places = [place for place, one in zip(gathered.places, questions, strict=True) if found(one)]
            if places:
                yield "look at", f"{len(places)} {what}: {_some(places)}"
    for fault in gathered.faults[: 4 * _SHOWN]:
        yield "fault", fault
    if len(gathered.faults) > 4 * _SHOWN:
        yield "fault", f"... and {len(gathered.faults) - 4 * _SHOWN} more"


def _counts(questions: list[Question]) -> Iterator[tuple[str, str]]:
    numbers = [len(one.accepted) for one in questions if one.accepted]
    nothing = len(questions) - len(numbers)
    if numbers:
        said = f"{min(numbers)} to {max(numbers)} accepted, {statistics.median(numbers):g} at the median"
        yield "answers", said + (f"; {nothing} questions have no right answer" if nothing else "")
    else:
        yield "answers", "no question has a right answer: there is nothing to tell apart"
    entities = collections.Counter(one.entity.casefold() for one in questions)
    alone = sum(one.entity == one.text for one in questions)
    name, most = entities.most_common(1)[0]
    about = f"{most} questions about the largest ({name[:60]!r})" if most > 1 else "one question about each"
    text = f"{len(entities)}, {about}"
    yield "entities", text + (f"; {alone} questions are an entity of their own" if alone else "")
    if most > _LARGE * len(questions) and len(questions) > 1:
        yield "look at", f"{most / len(questions):.0%} of the questions are about one entity: all fall into one split"
    groups = collections.Counter(group for one in questions for group in one.groups)
    if groups:
        shown = ", ".join(f"{group} {count}" for group, count in groups.most_common(4 * _SHOWN))
        yield "groups", shown + (f", ... ({len(groups)})" if len(groups) > 4 * _SHOWN else "")


def _some(places: list[str]) -> str:
    return ", ".join(places[:_SHOWN]) + (", ..." if len(places) > _SHOWN else "")


def _any(test: Callable[[str], bool]) -> Callable[[Question], bool]:
    return lambda question: any(test(answer) for answer in question.accepted)


def _echoes(question: Question) -> bool:
    """Whether the question by itself would be judged a right answer."""
    return bool(question.accepted) and judge(Question("?", question.accepted, ""), question.text) is True


_ODDITIES: tuple[tuple[str, Callable[[Question], bool]], ...] = (
    ("questions contain an accepted answer; one that only repeats it is not right", _echoes),
    ("have an accepted answer with several in one", _any(lambda text: _SEVERAL.search(text) is not None)),
    (
        f"accept only answers of more than {_LONG} words, which the rule hardly finds",
        lambda one: bool(one.accepted) and all(len(read(text)[0]) > _LONG for text in one.accepted),
    ),
    ("have an accepted answer without letters and digits", _any(lambda text: not read(text)[0])),
    ("have an accepted answer that reads as a decline", _any(lambda text: rest_of(text) is None)),
    (
        "have garbled text, as of UTF-8 read as Latin-1",
        lambda one: any(_GARBLED.search(text) for text in (one.text, *one.accepted)),
    ),
)
