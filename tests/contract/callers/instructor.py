"""``instructor``: answers of a type, over chat completions: the arguments of a tool, which is its default, or JSON."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from tests.contract.callers.openai import Place
from tests.contract.callers.openai import client as openai_client
from tests.contract.house import MODEL
from tests.contract.outcomes import REFUSED, REPLACED, WITHHELD, Ask, Caller, Seen

TRIES = 3  # of its default, one more, the last question would not fit into atlas's context


@cache
def client(url: str, key: str, retries: int | None, mode: str) -> Any:
    import instructor

    return instructor.from_openai(openai_client(url, key, retries), mode=instructor.Mode[mode])


def tool(ask: Ask, stream: bool, seen: Seen) -> None:
    _call(ask, stream, seen, "TOOLS")


def schema(ask: Ask, stream: bool, seen: Seen) -> None:
    _call(ask, stream, seen, "JSON_SCHEMA")


def _call(ask: Ask, stream: bool, seen: Seen, mode: str) -> None:
    from instructor.core import InstructorRetryException

    completions = client(ask.url, ask.outcome.key, ask.retries, mode).chat.completions
    given: dict[str, Any] = {
        "model": MODEL,
        "messages": ask.messages,
        "response_model": Place,
        "max_retries": TRIES - 1,
        "extra_body": ask.body,
        # Its second question has only words of its own: the engine's script goes by the id, then.
        "extra_headers": {"X-Request-Id": re.sub(r"\W+", "-", ask.question)},
    }
    value = None
    try:
        if stream:
            for value in completions.create_partial(**given):
                seen.got(value)
        else:
            value, completion = completions.create_with_completion(**given)
            _completion(completion, seen)
    except InstructorRetryException as error:
        seen.got(error.failed_attempts)
        if error.last_completion is not None:
            _completion(error.last_completion, seen)
        raise
    seen.ended(result="set" if value is not None else "never comes")
    if value is not None:
        seen.text = json.dumps(value.model_dump())


def _completion(completion: Any, seen: Seen) -> None:
    seen.got(completion)
    seen.found("`model_extra` of the completion", completion.model_extra)
    (choice,) = completion.choices
    seen.ended(finish_reason=choice.finish_reason)
    seen.usage = (completion.usage.prompt_tokens, completion.usage.completion_tokens)


CALLERS = [
    Caller("instructor", "create", tool, (False,), "hermes", {REPLACED: TRIES}),
    Caller("instructor", "create_partial", tool, (True,), "hermes"),
    Caller(
        "instructor",
        "create, by JSON_SCHEMA",
        schema,
        (False,),
        "json",
        dict.fromkeys((REFUSED, REPLACED, WITHHELD), TRIES),
    ),
    Caller("instructor", "create_partial, by JSON_SCHEMA", schema, (True,), "json"),
]
