"""Questions whose right answers are known: read from a file or a public data set, and split by entity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.errors import FitError

# By name: repository on the Hugging Face Hub, configuration, part, and the column of the question.
DATASETS = {
    "triviaqa": ("mandarjoshi/trivia_qa", "rc.nocontext", "train", "question"),
    "nq_open": ("google-research-datasets/nq_open", "nq_open", "train", "question"),
    "simpleqa": ("basicv8vc/SimpleQA", "default", "test", "problem"),
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question with every answer that counts as right.

    entity: what it asks about; all questions about one entity fall into the same split.
    groups: names of the sets it belongs to, for reports.
    accepted: empty when no answer is right (the thing asked about does not exist).
    """

    text: str
    accepted: tuple[str, ...]
    entity: str
    groups: tuple[str, ...] = ()


def load_questions(source: str, most: int | None = None) -> list[Question]:
    """Questions from a file of JSON lines, or from one of DATASETS by name; the first ``most`` of them.

    A row has ``question`` and ``answers`` (a list, or one string); ``entity`` (the question itself when left out) and
    ``groups`` are optional. ``answers`` may be empty only where ``"exists": false`` says that no answer is right.
    Raises FitError with the line that is wrong.
    """
    path = Path(source)
    if path.is_file():
        rows: Iterable[tuple[int, Any]] = _lines(path)
    elif source in DATASETS:
        rows = _dataset(source, most)
    else:
        raise FitError(f"no questions at {source!r}: neither a file nor one of {', '.join(DATASETS)}")
    seen: dict[str, int] = {}
    questions: list[Question] = []
    for number, row in rows:
        question = _question(row, f"{source}, line {number}")
        if question.text in seen:
            raise FitError(f"{source}, line {number}: the question of line {seen[question.text]} again; remove one")
        seen[question.text] = number
        questions.append(question)
        if len(questions) == most:
            break
    if not questions:
        raise FitError(f"{source} has no questions")
    return questions


def _lines(path: Path) -> Iterable[tuple[int, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise FitError(f"{path}, line {number}: not JSON ({error.msg})") from None


def _question(row: Any, where: str) -> Question:
    if not isinstance(row, dict) or not isinstance(row.get("question"), str) or not row["question"].strip():
        raise FitError(f"{where}: needs a question, as text")
    answers = row.get("answers")
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise FitError(f"{where}: needs answers, a list of texts")
    accepted = tuple(answer for answer in answers if answer.strip())
    if not accepted and row.get("exists", True):
        raise FitError(f'{where}: has no answer; say "exists": false if no answer can be right')
    groups = row.get("groups", [])
    if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
        raise FitError(f"{where}: groups must be a list of names")
    return Question(row["question"], accepted, str(row.get("entity") or row["question"]), tuple(groups))


def _dataset(name: str, most: int | None) -> Iterable[tuple[int, Any]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise FitError(f"{name} is read with the package `datasets`: pip install datasets") from None
    repository, configuration, part, column = DATASETS[name]
    try:
        rows = load_dataset(repository, configuration, split=part if most is None else f"{part}[:{2 * most}]")
    except Exception as error:  # it raises whatever its many back ends raise
        raise FitError(f"{name} could not be fetched ({type(error).__name__}: {error})") from error
    seen = set()
    for number, row in enumerate(rows, 1):
        question, answers = row[column], row["answer"]
        if isinstance(answers, dict):
            answers = [answers["value"], *answers["aliases"]]
        if question not in seen:  # TriviaQA asks some questions twice
            seen.add(question)
            yield number, {"question": question, "answers": answers}


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
