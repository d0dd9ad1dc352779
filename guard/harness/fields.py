"""What a row says: question, accepted answers, entity, groups; by the names that public sets give these fields.

Ours: question, answers, exists, entity, groups. NQ-open: question, answer (a list). TriviaQA: question, answer (value
and aliases). SQuAD: question, answers (text), title. PopQA: question, possible_answers (a list written as JSON), subj,
prop. SimpleQA: problem, answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

QUESTION = ("question", "problem")
_ANSWERS = ("answers", "answer", "possible_answers")
READ = frozenset({*QUESTION, *_ANSWERS, "exists", "is_impossible", "entity", "subj", "title", "groups", "prop"})
_YES, _NO = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True, slots=True)
class Fields:
    """accepted: empty when ``exists`` is False, and where SQuAD says that its text has no answer (``unanswerable``)."""

    question: str
    accepted: tuple[str, ...]
    exists: bool
    unanswerable: bool
    entity: str | None
    groups: tuple[str, ...]


def fields_of(row: Any) -> Fields:
    """Raises ValueError with what is wrong, to be put behind the row's place."""
    if not isinstance(row, dict):
        raise ValueError("needs a question, as text")
    row = {str(name).casefold(): value for name, value in row.items()}
    question = next((row[name] for name in QUESTION if row.get(name) is not None), None)
    if not isinstance(question, str) or not question.strip():
        raise ValueError("needs a question, as text")
    name = next((name for name in _ANSWERS if row.get(name) is not None), None)
    accepted = _texts(row[name]) if name else None
    exists = _exists(row.get("exists"))
    if accepted is None:
        if exists or name:
            raise ValueError("needs answers, a list of texts")
        accepted = []
    accepted = list(dict.fromkeys(text.strip() for text in accepted if text.strip()))
    for text in (question, *accepted):
        _whole(text)
    unanswerable = not accepted and (row.get("is_impossible") is True or _is_squad(row.get("answers")))
    if accepted and not exists:
        raise ValueError(f'"exists" says that no answer is right, and {name} gives some: take one of the two out')
    if not accepted and exists and not unanswerable:
        raise ValueError('has no answer; say "exists": false if no answer can be right')
    squad = "title" in row and (unanswerable or _is_squad(row.get("answers")))
    entity = next((row[key] for key in ("entity", "subj") if row.get(key) not in (None, "")), None)
    entity = row["title"] if entity is None and squad else entity
    if isinstance(entity, bool) or not isinstance(entity, str | int | None):
        raise ValueError("entity must be a name or a whole number")
    groups = _groups(row.get("groups"), row.get("prop"))
    for text in (str(entity), *groups):
        _whole(text)
    return Fields(
        question.strip(), tuple(accepted), exists, unanswerable, None if entity is None else str(entity), groups
    )


def _texts(value: Any) -> list[str] | None:
    """The texts of an answer field in any of its forms, or None."""
    if isinstance(value, str):
        if value.lstrip()[:1] == "[" and value.rstrip()[-1:] == "]":  # a list in a cell
            try:
                listed = json.loads(value)
            except ValueError:
                raise ValueError('has answers that are no JSON list: write ["a", "b"], or one text') from None
            return _texts(listed)
        return [value]
    if isinstance(value, dict):
        lower = {str(name).casefold(): item for name, item in value.items()}
        if "text" in lower:
            return _texts(lower["text"])
        found = [_texts(lower[name]) for name in ("value", "aliases") if lower.get(name) is not None]
        texts = [text for part in found if part is not None for text in part]
        return texts if found and None not in found else None
    if isinstance(value, list):
        if all(isinstance(item, str) for item in value):
            return list(value)
        parts = [_texts(item) if isinstance(item, dict) else None for item in value]
        return None if None in parts else [text for part in parts if part is not None for text in part]
    return None


def _is_squad(value: Any) -> bool:
    if isinstance(value, dict):
        return "text" in value
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and "text" in one for one in value)


def _exists(value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return value is not False
    word = str(value).strip().casefold()
    if word in _YES or word in _NO:
        return word in _YES
    raise ValueError("exists must be true or false")


def _groups(groups: Any, prop: Any) -> tuple[str, ...]:
    if groups is None:
        return (prop,) if isinstance(prop, str) and prop.strip() else ()
    if isinstance(groups, str) and groups.lstrip()[:1] == "[":
        try:
            groups = json.loads(groups)
        except ValueError:
            groups = None
    if not isinstance(groups, list) or not all(isinstance(group, str) and group.strip() for group in groups):
        raise ValueError('groups must be a list of names (in a table: ["a", "b"])')
    return tuple(dict.fromkeys(groups))


def _whole(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise ValueError(
            f"has half a character (\\u{half:04x}, an unpaired surrogate): write the whole of it"
        ) from None
