"""``pydantic-ai``: an agent over chat completions, responses and Anthropic's messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.contract.house import MODEL
from tests.contract.outcomes import Ask, Caller, Seen

if TYPE_CHECKING:
    import openai
    from pydantic_ai.models import Model


def _openai(ask: Ask) -> openai.AsyncOpenAI:
    import openai

    return openai.AsyncOpenAI(base_url=f"{ask.url}/v1", api_key=ask.outcome.key, timeout=30, **ask.patience)


def chat(ask: Ask, stream: bool, seen: Seen) -> None:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    _over(
        _openai(ask), lambda own: OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=own)), ask, stream, seen
    )


def responses(ask: Ask, stream: bool, seen: Seen) -> None:
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    own = _openai(ask)
    _over(own, lambda own: OpenAIResponsesModel(MODEL, provider=OpenAIProvider(openai_client=own)), ask, stream, seen)


def messages(ask: Ask, stream: bool, seen: Seen) -> None:
    import anthropic
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    own = anthropic.AsyncAnthropic(base_url=ask.url, api_key=ask.outcome.key, timeout=30, **ask.patience)
    _over(own, lambda own: AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=own)), ask, stream, seen)


def _over(client: Any, model: Callable[[Any], Model], ask: Ask, stream: bool, seen: Seen) -> None:
    async def run() -> None:
        async with client as own:
            await _run(model(own), ask, stream, seen)

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:  # leaves the tests' own loop where it is
        runner.run(run())


async def _run(model: Model, ask: Ask, stream: bool, seen: Seen) -> None:
    from pydantic_ai import Agent

    agent = Agent(model)
    settings: Any = {"extra_body": ask.body, "max_tokens": 64}
    if stream:
        async with agent.run_stream(ask.question, model_settings=settings) as run:
            async for part in run.stream_text(delta=True):
                seen.got(part)
                seen.text += part
            response, usage = run.response, run.usage
    else:
        done = await agent.run(ask.question, model_settings=settings)
        seen.text = done.output
        response, usage = done.response, done.usage
    seen.got(response)
    seen.ended(response__finish_reason=response.finish_reason)
    seen.found("`response.provider_details`", response.provider_details)
    seen.usage = (usage.input_tokens, usage.output_tokens)


CALLERS = [
    Caller("pydantic-ai-slim", "OpenAIChatModel", chat),
    Caller("pydantic-ai-slim", "OpenAIResponsesModel", responses),
    Caller("pydantic-ai-slim", "AnthropicModel", messages),
]
