"""What one request may ask for, checked on its parsed body before the engine sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from app.dialects import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from app.errors import Reason, RefusedError

RISK = frozenset({"/risk", "/v1/risk"})

# By route: the field that holds the conversation, and those that say how long an answer may get.
_TURNS = {CHAT: "messages", RESPONSES: "input", MESSAGES: "messages"}
_LENGTHS = {
    CHAT: ("max_completion_tokens", "max_tokens"),
    COMPLETIONS: ("max_tokens",),
    RESPONSES: ("max_output_tokens",),
    MESSAGES: ("max_tokens",),
}
_COUNTS = {CHAT: ("n",), COMPLETIONS: ("n", "best_of")}

_INTEGER = TypeAdapter(int)


@dataclass(frozen=True, slots=True)
class Limits:
    """The operator's numbers. What has the wrong type is left to the route, which says so better."""

    max_messages: int
    max_tokens: int
    max_choices: int
    max_risk_items: int

    def check(self, path: str, body: Any) -> None:
        """Raises RequestError naming the field of a body that asks for too much."""
        if path in RISK and isinstance(body, list) and len(body) > self.max_risk_items:
            raise _too_much(None, f"{len(body)} items, more than the {self.max_risk_items} allowed in one request", 413)
        if not isinstance(body, dict):
            return
        conversation = _TURNS.get(path)
        turns = body.get(conversation) if conversation else None
        if isinstance(turns, list) and len(turns) > self.max_messages:
            raise _too_much(conversation, f"{len(turns)} messages, more than the {self.max_messages} allowed")
        for field in _LENGTHS.get(path, ()):
            asked = _integer(body.get(field))
            if asked is not None and asked > self.max_tokens:
                raise _too_much(field, f"{field} is {asked}, more than the {self.max_tokens} allowed")
        field, each = _choices(path, body)
        prompts = _prompts(path, body)
        if each * prompts > self.max_choices:
            answers = f"{each} for each of {prompts} prompts" if prompts > 1 else str(each)
            raise _too_much(
                "prompt" if each == 1 else field, f"{answers}: more than the {self.max_choices} answers allowed at once"
            )


def answers(path: str, body: Any) -> int:
    """How many answers the engine will work on for this body; at least one."""
    if isinstance(body, list):
        return max(1, len(body))
    return _choices(path, body)[1] * _prompts(path, body) if isinstance(body, dict) else 1


def _choices(path: str, body: dict[str, Any]) -> tuple[str, int]:
    """(field, number) of the answers to each prompt."""
    asked = [(field, max(1, _integer(body.get(field)) or 1)) for field in _COUNTS.get(path, ())]
    return max(asked, key=lambda one: one[1], default=("n", 1))


def _prompts(path: str, body: dict[str, Any]) -> int:
    prompt = body.get("prompt") if path == COMPLETIONS else None
    if not isinstance(prompt, list) or not prompt:
        return 1
    # A list of numbers is one prompt, as tokens.
    return 1 if isinstance(prompt[0], int | float) else len(prompt)


def _integer(value: Any) -> int | None:
    """As vLLM's routes will read it ("8" and 8.0 are 8); None where they will refuse it."""
    try:
        return None if value is None else _INTEGER.validate_python(value)
    except ValidationError:
        return None


def _too_much(param: str | None, message: str, status: int = 400) -> RefusedError:
    refused = RefusedError(Reason.INVALID_LIMITS, message, param)
    refused.status = status
    return refused
