"""Which part of an answer states the fact: by character offsets and token ids, never by searching decoded strings.

A rule for short answers in the style of question-answering sets: the first line, without the words that lead up to the
answer, without quotation marks, a leading article and closing punctuation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_LEADS = (
    re.compile(r"(?:the (?:correct |right )?answer is|answer:)\s*", re.IGNORECASE),
    re.compile(
        r"(?:it|they|this|that|he|she)(?:'s| is| are| was| were)\s+(?:in |at |on |called |known as )?", re.IGNORECASE
    ),
    re.compile(r"its? (?:\w+ ){1,3}is\s+", re.IGNORECASE),
)
_CORRECTED = re.compile(r"\b(?:or|but)(?: more commonly| most likely| rather),?\s+", re.IGNORECASE)
_ARTICLE = re.compile(r"(?:the|a|an)\s+(?=\S)", re.IGNORECASE)
_CLOSES = "%°"


def find_span(text: str) -> tuple[int, int]:
    """Characters start (inclusive) to end (exclusive) of the answer in ``text``; all of it when nothing is left."""
    line = next((line for line in text.split("\n") if line.strip()), text)
    start = text.index(line)
    start, end = _shrunk(text, start, start + len(line))
    if corrected := _CORRECTED.search(text, start, end):
        start = corrected.end()
    for lead in (*_LEADS, _ARTICLE):
        if (match := lead.match(text, start, end)) and match.end() < end:
            start, _ = _shrunk(text, match.end(), end)
    return (start, end) if start < end else (0, len(text))


def _shrunk(text: str, start: int, end: int) -> tuple[int, int]:
    """Without punctuation around; a closing bracket stays where its partner is inside."""
    while start < end and not text[start].isalnum():
        start += 1
    while end > start and not (text[end - 1].isalnum() or text[end - 1] in _CLOSES):
        if text[end - 1] == ")" and "(" in text[start : end - 1]:
            break
        end -= 1
    return start, end


def token_offsets(tokenizer: Any, tokens: Sequence[int]) -> list[int]:
    """Where each token's text ends in the decoded answer: characters, one for each token.

    By decoding prefixes: the pieces of a byte-level vocabulary are no characters by themselves.
    """
    return [len(tokenizer.decode(tokens[: i + 1], skip_special_tokens=True)) for i in range(len(tokens))]


def tokens_of(ends: Sequence[int], characters: tuple[int, int]) -> tuple[int, int]:
    """The range of tokens that covers a range of characters; all of them when none does."""
    covered = [i for i, end in enumerate(ends) if end > characters[0] and (ends[i - 1] if i else 0) < characters[1]]
    return (covered[0], covered[-1] + 1) if covered else (0, len(ends))
