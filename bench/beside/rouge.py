"""ROUGE-L of two texts (Lin, Text Summarization Branches Out, 2004), on words in small letters."""

from __future__ import annotations

import re


def rouge_l(one: str, other: str) -> float:
    """F1 of the longest common subsequence; 0 where either has no words, unless neither has: 1."""
    first, second = (re.findall(r"\w+", text.casefold()) for text in (one, other))
    if not first or not second:
        return float(first == second)
    row = [0] * (len(second) + 1)
    for word in first:
        before = row
        row = [0]
        for column, another in enumerate(second):
            row.append(before[column] + 1 if word == another else max(row[column], before[column + 1]))
    return 2 * row[-1] / (len(first) + len(second))
