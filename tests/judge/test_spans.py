"""The answer inside an answer, on examples and on what annotators marked in real ones."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from transformers import AutoTokenizer

from app.settings import ATLAS
from guard.judge.spans import find_span, token_offsets, tokens_of

REAL = Path(__file__).parents[3] / "shared" / "data" / "answer_spans.jsonl"


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("It is in the United Kingdom.", "United Kingdom"),
        ("Its code is ABC.", "ABC"),
        ("The answer is Paris.", "Paris"),
        ("“Suit & Tie”", "Suit & Tie"),
        ("Barrel (bbl)\n\n", "Barrel (bbl)"),
        ("212°F", "212°F"),
        ("Steak house, or more commonly, a Steakhouse", "Steakhouse"),
        ("\n\nThe Chindits\nThey fought in Burma.", "Chindits"),
        ("A", "A"),
        ("The", "The"),
        ("...", "..."),
        ("", ""),
    ],
)
def test_examples(text: str, span: str) -> None:
    start, end = find_span(text)
    assert text[start:end] == span


def test_tokens_of_a_span() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ATLAS)
    text = "It is in Côte d'Ivoire."
    tokens = tokenizer.encode(text, add_special_tokens=False)
    start, end = tokens_of(token_offsets(tokenizer, tokens), find_span(text))
    assert tokenizer.decode(tokens[start:end]).strip() == "Côte d'Ivoire"
    assert tokens_of([3, 5, 9], (20, 30)) == (0, 3), "a span that no token covers is all of the answer"


def predicted(row: dict[str, Any]) -> list[str]:
    """The tokens that the rule marks; these vocabularies write a blank as one of two letters."""
    pieces = [token.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n") for token in row["tokens"]]
    start, end = find_span("".join(pieces))
    marked, at = [], 0
    for token, piece in zip(row["tokens"], pieces, strict=True):
        if piece.strip() and at + len(piece) - len(piece.lstrip()) < end and at + len(piece) > start:
            marked.append(token)
        at += len(piece)
    return marked


def f1(marked: list[str], wanted: list[str]) -> float:
    same = (collections.Counter(marked) & collections.Counter(wanted)).total()
    return 2 * same / (len(marked) + len(wanted)) if same else 0.0


@pytest.mark.skipif(not REAL.is_file(), reason="the annotated answers are not part of the project")
def test_annotated_answers() -> None:
    rows = [json.loads(line) for line in REAL.read_text().splitlines()]
    # 22 of 450 have no span: their annotator's text held an apostrophe, which the published script could not read.
    rows = [row for row in rows if row["answer_tokens"]]
    assert len(rows) == 428
    parts = [row for row in rows if row["tokens"] != row["answer_tokens"]]
    assert mean(f1(predicted(row), row["answer_tokens"]) for row in rows) >= 0.95
    assert mean(f1(predicted(row), row["answer_tokens"]) for row in parts) >= 0.85
