"""``langchain-openai``: a chat model over chat completions, and over responses."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from tests.contract.house import MODEL
from tests.contract.outcomes import Ask, Caller, Seen

if TYPE_CHECKING:
    from langchain_openai import ChatOpenAI


@cache
def model(url: str, key: str, retries: int | None, responses: bool) -> ChatOpenAI:
    from langchain_openai import ChatOpenAI

    more: dict[str, Any] = {} if retries is None else {"max_retries": retries}
    return ChatOpenAI(
        model=MODEL,
        base_url=f"{url}/v1",
        api_key=key,
        timeout=30,
        stream_usage=True,
        use_responses_api=responses,
        **more,
    )


def chat(ask: Ask, stream: bool, seen: Seen) -> None:
    _call(ask, stream, seen, responses=False)


def responses(ask: Ask, stream: bool, seen: Seen) -> None:
    _call(ask, stream, seen, responses=True)


def _call(ask: Ask, stream: bool, seen: Seen, responses: bool) -> None:
    chat = model(ask.url, ask.outcome.key, ask.retries, responses)
    if stream:
        reply = None
        for chunk in chat.stream(ask.question, extra_body=ask.body):
            seen.got(chunk)
            seen.text += chunk.text
            reply = chunk if reply is None else reply + chunk
        assert reply is not None
    else:
        reply = chat.invoke(ask.question, extra_body=ask.body)
        seen.text = reply.text
    seen.got(reply)
    told = reply.response_metadata
    seen.found("`response_metadata`", told)
    seen.found("`additional_kwargs`", reply.additional_kwargs)
    details = told.get("incomplete_details") or {}
    blocks = [part for part in reply.content if isinstance(part, dict)] if isinstance(reply.content, list) else []
    seen.ended(
        response_metadata__finish_reason=told.get("finish_reason"),
        response_metadata__status=told.get("status"),
        response_metadata__incomplete_details=details.get("reason"),
        additional_kwargs__refusal="set" if reply.additional_kwargs.get("refusal") else None,
        content="a refusal" if any(part.get("type") == "refusal" for part in blocks) else None,
    )
    if reply.usage_metadata:
        seen.usage = (reply.usage_metadata["input_tokens"], reply.usage_metadata["output_tokens"])


CALLERS = [
    Caller("langchain-openai", "ChatOpenAI", chat),
    Caller("langchain-openai", "ChatOpenAI(use_responses_api=True)", responses),
]
