"""What one request may ask for, checked on its parsed body before the engine sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from app import errors
from app.errors import MalformedError, Reason, RefusedError
from app.ingress.body import Lines
from app.protocols import sizes
from app.protocols.adapters.registry import ADAPTERS, RESPONSES
from app.settings import RequestLimits
from guard.errors import RequestError

RISK = frozenset({"/risk", "/v1/risk"})
TOKENIZE, COUNT_TOKENS = "/tokenize", "/v1/messages/count_tokens"
RENDERING = frozenset({TOKENIZE, "/detokenize", COUNT_TOKENS})  # they generate nothing, and yet are work

# By route: the field that holds the conversation.
_TURNS = {
    **{path: adapter.turns for path, adapter in ADAPTERS.items()},
    TOKENIZE: "messages",
    COUNT_TOKENS: "messages",
}
# What is read with a conversation, and what a grammar is made of.
_BESIDE = ("system", "documents")
_GRAMMARS = ("structured_outputs", "response_format", "text", "output_config", "tools")
_LENGTHS = {path: adapter.lengths for path, adapter in ADAPTERS.items()}
_COUNTS = {path: adapter.counts for path, adapter in ADAPTERS.items()}

_INTEGER = TypeAdapter(int)
# Far beyond what a request needs; so many wrong ones are refused in a few tenths of a second.
_VALUES, _LEVELS, _BAD_WORDS, _SPELLED, _NAME = 25_000, 100, 100_000, 400_000, 256
# Of a template: where it is called, these names stand for something else.
_NO_ARGUMENTS = ("conversation", "messages", "self", "tokenizer")


@dataclass(frozen=True, slots=True)
class Limits:
    """The operator's numbers. What has the wrong type is left to the route, which says so better."""

    bounds: RequestLimits
    capacity: int  # answers that the server has room for at once

    def check(self, path: str, body: Any) -> None:
        """Raises RequestError naming the field of a body that asks for too much."""
        _require_shape(body)
        if body is None:
            raise MalformedError("the body is null; a JSON object is required")
        if isinstance(body, Lines):
            if path not in RISK:
                raise errors.ApiError("only /risk takes JSON lines; send one JSON object", "body", 415)
            for item in body:  # each by itself, as they are scored
                self._check_items([item])
        elif path in RISK:
            self._check_items(body if isinstance(body, list) else [body])
        if not isinstance(body, dict):
            return
        conversation = _TURNS.get(path)
        turns = body.get(conversation) if conversation else None
        if isinstance(turns, list):
            self._check_messages(conversation, turns, {field: body.get(field) for field in _BESIDE})
        elif conversation == "messages" and conversation in body and path != TOKENIZE:
            raise RequestError(f"messages must be a list, not {_kind(turns)}", "messages")
        _require_template_arguments(body.get("chat_template_kwargs"))
        _require_spelling(path, body)
        self._check_grammars(body)
        if path == RESPONSES and body.get("background") is True:
            # vLLM would name a variable that stores responses, with which no server starts here.
            message = "no responses are allowed in the background: stream, or wait for the answer"
            raise RequestError(message, "background")
        name = body.get("request_id")
        if isinstance(name, str) and len(name) > _NAME:
            raise _too_much("request_id", f"request_id has {len(name)} characters, more than the {_NAME} allowed")
        _require_words(body.get("bad_words"), _prompts(path, body))
        for field in _LENGTHS.get(path, ()):
            asked = _integer(body.get(field))
            if asked is not None and asked > self.bounds.max_tokens:
                raise _too_much(field, f"{field} is {asked}, more than the {self.bounds.max_tokens} allowed")
        field, each = _choices(path, body)
        prompts = _prompts(path, body)
        if each * prompts > self.max_choices:
            answers = f"{each} for each of {prompts} prompts" if prompts > 1 else str(each)
            raise _too_much(
                "prompt" if each == 1 else field, f"{answers}: more than the {self.max_choices} answers allowed at once"
            )

    @property
    def max_choices(self) -> int:
        return min(self.bounds.max_choices, self.capacity)

    @property
    def max_risk_items(self) -> int:
        return min(self.bounds.max_risk_items, self.capacity)

    def answers(self, path: str, body: Any) -> int:
        """How many answers the engine will work on for this body; at least one."""
        if path in RISK and isinstance(body, list):
            most = self.max_risk_items if isinstance(body, Lines) else len(body)
            return max(1, min(len(body), most))
        return _choices(path, body)[1] * _prompts(path, body) if isinstance(body, dict) else 1

    def _check_items(self, items: list[Any]) -> None:
        if len(items) > self.max_risk_items:
            raise _too_much(
                None, f"{len(items)} items, more than the {self.max_risk_items} allowed in one request", 413
            )
        chats = [
            item["messages"] for item in items if isinstance(item, dict) and isinstance(item.get("messages"), list)
        ]
        self._check_messages("messages", [message for chat in chats for message in chat], {})

    def _check_messages(self, field: str | None, messages: list[Any], beside: dict[str, Any]) -> None:
        """``beside``: what is read with the messages, and may be long only where it is a list."""
        if len(messages) > self.bounds.max_messages:
            raise _too_much(field, f"{len(messages)} messages, more than the {self.bounds.max_messages} allowed")
        for index, one in enumerate(messages):
            calls = one.get("tool_calls") if isinstance(one, dict) else None
            if calls is not None and not isinstance(calls, list):
                where = f"{field}.{index}.tool_calls"
                raise RequestError(f"{where} must be a list, not {_kind(calls)}", where)
        if sizes.parts([beside, *messages], self.bounds.max_parts) > self.bounds.max_parts:
            raise _too_much(
                field, f"the messages have more parts than the {self.bounds.max_parts} allowed; give text as one string"
            )

    def _check_grammars(self, body: dict[str, Any]) -> None:
        tools = body.get("tools")
        if isinstance(tools, list) and len(tools) > self.bounds.max_tools:
            raise _too_much("tools", f"{len(tools)} tools, more than the {self.bounds.max_tools} allowed")
        left = self.bounds.max_grammar
        for field in _GRAMMARS:
            given = body.get(field)
            if isinstance(given, dict | list):
                left -= sizes.grammar(given, left)
            if left < 0:
                raise _too_much(
                    field,
                    f"schemas, choices and patterns are larger than the {self.bounds.max_grammar} allowed "
                    "(values, each character of a pattern for 2, 16 of other text for 1)",
                )


def _require_shape(body: Any) -> None:
    """What a body may be before anybody looks at what it says: each value that is wrong is a complaint."""
    for field, value in body.items() if isinstance(body, dict) else [(None, body)]:
        count, levels = sizes.values(value, _VALUES, _LEVELS, field or "")
        if levels > _LEVELS:
            raise _too_much(field, f"{field or 'the body'} is nested deeper than the {_LEVELS} levels allowed")
        if count > _VALUES:
            raise _too_much(
                field,
                f"{field or 'the body'} has more than the {_VALUES} values allowed (ids of tokens are not counted)",
            )
    if isinstance(body, dict) and len(body) > _VALUES:
        raise _too_much(None, f"the body has {len(body)} fields, more than the {_VALUES} allowed")


def _require_spelling(path: str, body: dict[str, Any]) -> None:
    prompt = body.get("prompt")
    if path == TOKENIZE and body.get("return_token_strs") and isinstance(prompt, str) and len(prompt) > _SPELLED:
        raise _too_much(
            "return_token_strs",
            f"return_token_strs is for up to {_SPELLED} characters, and the prompt has {len(prompt)}",
        )


def _require_words(words: Any, prompts: int) -> None:
    if not isinstance(words, list):
        return
    letters = sum(len(word) for word in words if isinstance(word, str)) * prompts
    if letters > _BAD_WORDS:
        raise _too_much(
            "bad_words",
            f"bad_words are tokenized for each prompt, which here are {letters} characters, more than the "
            f"{_BAD_WORDS} allowed",
        )


def _require_template_arguments(given: Any) -> None:
    """Raises RequestError for what would be an error of Python's, somewhere in transformers."""
    if not isinstance(given, dict):
        return
    for name in _NO_ARGUMENTS:
        if name in given:
            raise RequestError(f"chat_template_kwargs may not have {name}", "chat_template_kwargs")
    documents = given.get("documents")
    if documents is not None and not isinstance(documents, list):
        raise RequestError(
            f"chat_template_kwargs.documents must be a list, not {_kind(documents)}", "chat_template_kwargs"
        )


def _kind(value: Any) -> str:
    """In JSON's words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}
    return kinds.get(type(value), "a number")


def _choices(path: str, body: dict[str, Any]) -> tuple[str, int]:
    """(field, number) of the answers to each prompt."""
    asked = [(field, max(1, _integer(body.get(field)) or 1)) for field in _COUNTS.get(path, ())]
    return max(asked, key=lambda one: one[1], default=("n", 1))


def _prompts(path: str, body: dict[str, Any]) -> int:
    adapter = ADAPTERS.get(path)
    prompt = body.get(adapter.prompts) if adapter and adapter.prompts else None
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
    return RefusedError(Reason.INVALID_LIMITS, message, param, status)
