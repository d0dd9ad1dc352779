"""Requests of the guard's own to the engine: no caller's answer comes of them, and vLLM's counters hold them."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum


class Purpose(StrEnum):
    """What such a request was for. Each draws one token, which is thrown away."""

    SELF_TEST = "self_test"
    RISK = "risk"  # given text that a caller wants scored; a long one takes several
    TURN = "turn"  # what a prompt holds of the assistant's turn, which is scored with what is added
    PROMPT_CHECK = "prompt_check"


class OwnRequests:
    """How many there were so far, and how many prompt tokens they had, by purpose."""

    def __init__(self) -> None:
        self.requests: Counter[Purpose] = Counter()
        self.prompt_tokens: Counter[Purpose] = Counter()

    def count(self, purpose: Purpose, prompt_tokens: int) -> None:
        self.requests[purpose] += 1
        self.prompt_tokens[purpose] += prompt_tokens
