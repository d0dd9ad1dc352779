"""Questions whose right answers are known: read from a file or a public data set, and split by entity."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from guard.errors import FitError
from guard.harness.datafile import DataFile, Row, read_file
from guard.harness.fields import fields_of
from guard.harness.progress import tell
from guard.judge.question import Question
from guard.judge.words import normalise

# By name: repository on the Hugging Face Hub, configuration, and part.
DATASETS = {
    "triviaqa": ("mandarjoshi/trivia_qa", "rc.nocontext", "train"),
    "nq_open": ("google-research-datasets/nq_open", "nq_open", "train"),
    "simpleqa": ("basicv8vc/SimpleQA", "default", "test"),
}
# How questions are dealt by entity: what `hguard fit` and `hguard calibrate` use each part for.
SHARES = {
    "fit": {"train": 0.45, "calibration": 0.15, "thresholds": 0.15, "test": 0.25},
    "calibrate": {"calibration": 0.35, "thresholds": 0.3, "test": 0.35},
}


@dataclass(slots=True)
class Gathered:
    """The questions of a source, and what was left out on the way.

    places: where each question stands. repeated: (place, place of the first) of each question that came again; answers
    that only the later row has are added to the first. contradicting: places of questions that came twice with answers
    of which none is the same; all of them are left out. unanswerable: places of questions that their own set says have
    no answer in its text. faults: "place: what is wrong" of rows that cannot be used. names: in how many rows each
    field stands. file: None for a named set.
    """

    source: str
    file: DataFile | None
    questions: list[Question] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    repeated: list[tuple[str, str]] = field(default_factory=list)
    contradicting: list[str] = field(default_factory=list)
    unanswerable: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    names: Counter[str] = field(default_factory=Counter)

    def notices(self) -> list[str]:
        """One line for each kind of question that was left out."""
        lines = []
        if self.repeated:
            lines.append(f"{_count(len(self.repeated), 'repeated question')} dropped ({self.repeated[0][0]})")
        if self.contradicting:
            lines.append(
                f"{_count(len(self.contradicting), 'question')} dropped that the same question elsewhere contradicts "
                f"({', '.join(self.contradicting[:4])}{', ...' if len(self.contradicting) > 4 else ''})"
            )
        if self.unanswerable:
            lines.append(
                f"{_count(len(self.unanswerable), 'question')} dropped that the set's own text does not answer"
            )
        return [f"{self.source}: {line}" for line in lines]


def load_questions(source: str, most: int | None = None, say: Callable[[str], None] = tell) -> list[Question]:
    """Questions from a file (``datafile`` says of which kinds), or from one of DATASETS by name; the first ``most``.

    A row has ``question`` and ``answers`` (a list, or one string), or what public sets call them (``fields``);
    ``entity`` (the question itself when left out) and ``groups`` are optional. ``answers`` may be empty only where
    ``"exists": false`` says that no answer is right. ``say`` gets a line for each kind of question that is dropped.
    Raises FitError with the line that is wrong.
    """
    gathered = gather(source, most)
    if gathered.faults:
        raise FitError(f"{source}, {gathered.faults[0]}")
    if not gathered.questions:
        raise FitError(f"{source} has no questions")
    for line in gathered.notices():
        say(line)
    return gathered.questions


def gather(source: str, most: int | None = None, go_on: bool = False) -> Gathered:
    """What a source holds. Stops at the first fault, unless it is to ``go_on``. Raises FitError when it has no rows."""
    path = Path(source)
    if path.is_file():
        file = read_file(path)
        gathered, rows = Gathered(source, file), file.rows()
    elif source in DATASETS:
        gathered, rows = Gathered(source, None), _dataset(source, most)
    else:
        raise FitError(f"no questions at {source!r}: neither a file nor one of {', '.join(DATASETS)}")
    known: dict[str, int | None] = {}  # by text: which question, None when contradicted
    kept: list[Question | None] = []
    open_ = 0  # of those, not contradicted
    for row in rows:
        if isinstance(row.value, dict):
            gathered.names.update(str(name).casefold() for name in row.value)
        try:
            fields = fields_of(_value(row))
        except ValueError as error:
            gathered.faults.append(f"{row.place}: {error}")
            if go_on:
                continue
            break
        if fields.unanswerable:
            gathered.unanswerable.append(row.place)
            continue
        question = Question(fields.question, fields.accepted, fields.entity or fields.question, fields.groups)
        key = " ".join(unicodedata.normalize("NFC", question.text).split())
        if key not in known:
            known[key] = len(kept)
            kept.append(question)
            gathered.places.append(row.place)
            open_ += 1
            if open_ == most:
                break
        elif _again(gathered, kept, known, key, question, row.place):
            open_ -= 1
    gathered.places = [place for place, one in zip(gathered.places, kept, strict=True) if one is not None]
    gathered.questions = [one for one in kept if one is not None]
    return gathered


def _value(row: Row) -> Any:
    if row.fault is not None:
        raise ValueError(row.fault)
    return row.value


def _again(
    gathered: Gathered,
    kept: list[Question | None],
    known: dict[str, int | None],
    key: str,
    question: Question,
    place: str,
) -> bool:
    """Take the question of an earlier row. Whether the two contradict each other, and the first is taken out."""
    i = known[key]
    first = None if i is None else kept[i]
    if i is None or first is None:
        gathered.contradicting.append(place)
    elif _agree(first, question):
        gathered.repeated.append((place, gathered.places[i]))
        accepted = tuple(dict.fromkeys((*first.accepted, *question.accepted)))
        kept[i] = replace(first, accepted=accepted, groups=tuple(dict.fromkeys((*first.groups, *question.groups))))
    else:
        gathered.contradicting += [gathered.places[i], place]
        known[key] = kept[i] = None
        return True
    return False


def _agree(one: Question, other: Question) -> bool:
    same = {normalise(text) for text in one.accepted} & {normalise(text) for text in other.accepted}
    return bool(same) or one.accepted == other.accepted


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _dataset(name: str, most: int | None) -> Iterator[Row]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise FitError(f"{name} is read with the package `datasets`: pip install datasets") from None
    repository, configuration, part = DATASETS[name]
    try:
        rows = load_dataset(repository, configuration, split=part if most is None else f"{part}[:{2 * most}]")
    except Exception as error:  # it raises whatever its many back ends raise
        raise FitError(f"{name} could not be fetched ({type(error).__name__}: {error})") from error
    for number, row in enumerate(rows, 1):
        yield Row(f"row {number}", row)


def split(questions: Sequence[Question], shares: dict[str, float], seed: int) -> dict[str, list[int]]:
    """Indices by split, disjoint in entities: each entity is dealt by a hash of its name and the seed."""
    bounds: list[tuple[str, float]] = []
    total = 0.0
    for name, share in shares.items():
        total += share
        bounds.append((name, total))
    dealt: dict[str, list[int]] = {name: [] for name in shares}
    for i, question in enumerate(questions):
        digest = hashlib.sha256(f"{seed}/{question.entity.casefold()}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64 * total
        dealt[next(name for name, bound in bounds if place < bound)].append(i)
    return dealt


def prompt_of(tokenizer: Any, question: str) -> list[int]:
    """Token ids of a chat with this one message, up to where the assistant starts."""
    message = [{"role": "user", "content": question}]
    return list(tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False))


def question_start(tokenizer: Any) -> int:
    """How many tokens stand before the question in every prompt: what the template puts there."""
    first, second = (prompt_of(tokenizer, text) for text in ("What is it?", "How so?"))
    return next(i for i, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
