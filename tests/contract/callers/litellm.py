"""``litellm``: chat completions of a server that speaks OpenAI's API."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from tests.contract.house import MODEL
from tests.contract.outcomes import Ask, Caller, Seen


@cache
def library() -> Any:
    """``litellm``, which takes seconds to import, kept from the net."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # read at import, which would ask the net for prices
    import litellm

    litellm.suppress_debug_info = True
    litellm.telemetry = False
    return litellm


def completion(ask: Ask, stream: bool, seen: Seen) -> None:
    reply = library().completion(
        model=f"openai/{MODEL}",
        api_base=f"{ask.url}/v1",
        api_key=ask.outcome.key,
        messages=ask.messages,
        extra_body=ask.body,
        stream=stream,
        stream_options={"include_usage": True} if stream else None,
        timeout=30,
        **ask.patience,
    )
    for chunk in reply if stream else [reply]:
        seen.got(chunk)
        for choice in chunk.choices:
            said = choice.delta if stream else choice.message
            seen.text += said.content or ""
            refusal = getattr(said, "refusal", None) or (said.get("provider_specific_fields") or {}).get("refusal")
            seen.ended(finish_reason=choice.finish_reason, refusal=refusal and "set")
        seen.found("`model_extra` of a chunk" if stream else "`model_extra`", chunk.model_extra)
        usage = getattr(chunk, "usage", None)
        if usage is not None:
            seen.usage = (usage.prompt_tokens, usage.completion_tokens)


CALLERS = [Caller("litellm", "completion", completion)]
