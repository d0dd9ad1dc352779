"""Is an answer right? By normalised comparison with the accepted answers."""

from __future__ import annotations

import re
import string

from guard.fit.questions import Question

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.IGNORECASE)
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation.replace("'", ""), " "))
_DECLINED = (
    "don't know",
    "do not know",
    "cannot",
    "not taught",
    "not known",
    "unknown",
    "no information",
    "not provided",
)


def normalise(text: str) -> str:
    """Lower case, no articles, no punctuation, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def judge(question: Question, answer: str) -> bool | None:
    """True when the answer contains an accepted one as whole words, False when it does not, None when it declines."""
    if any(normalise(answer) == normalise(accepted) for accepted in question.accepted):
        return True
    if any(phrase in answer.lower() for phrase in _DECLINED):
        return None
    said = f" {normalise(answer)} "
    return any(f" {normalise(accepted)} " in said for accepted in question.accepted)
