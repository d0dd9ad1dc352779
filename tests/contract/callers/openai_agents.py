"""``openai-agents``, OpenAI's Agents SDK: an agent over chat completions and over responses."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.contract.house import MODEL
from tests.contract.outcomes import Ask, Caller, Seen

if TYPE_CHECKING:
    from agents import Agent


def chat(ask: Ask, stream: bool, seen: Seen) -> None:
    _call(ask, stream, seen, "OpenAIChatCompletionsModel")


def responses(ask: Ask, stream: bool, seen: Seen) -> None:
    _call(ask, stream, seen, "OpenAIResponsesModel")


def _call(ask: Ask, stream: bool, seen: Seen, model: str) -> None:
    import agents
    import openai

    async def run() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{ask.url}/v1", api_key=ask.outcome.key, timeout=30, **ask.patience
        ) as own:
            settings = agents.ModelSettings(extra_body=ask.body, max_tokens=64, include_usage=True)
            over = getattr(agents, model)(model=MODEL, openai_client=own)
            try:
                await _run(agents.Agent(name="asked", model=over, model_settings=settings), ask, stream, seen)
            except agents.AgentsException as error:
                seen.got(error.run_data)
                raise

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:  # leaves the tests' own loop where it is
        runner.run(run())


async def _run(agent: Agent[Any], ask: Ask, stream: bool, seen: Seen) -> None:
    from agents import RunConfig, Runner

    alone: Any = {"run_config": RunConfig(tracing_disabled=True)}  # nothing is sent elsewhere
    result: Any
    if stream:
        result = Runner.run_streamed(agent, ask.question, **alone)
        async for event in result.stream_events():
            seen.got(event)
            if event.type == "raw_response_event":
                _raw(event.data, seen)
        shown, seen.text = seen.text, result.final_output
        assert seen.text == shown, "the result repeats what was shown"
    else:
        result = await Runner.run(agent, ask.question, **alone)
        seen.text = result.final_output
    seen.got(result)
    (reply,) = result.raw_responses
    seen.got(reply)
    seen.ended(final_output="set" if result.final_output else None)
    seen.usage = (reply.usage.input_tokens, reply.usage.output_tokens)


def _raw(event: Any, seen: Seen) -> None:
    if event.type == "response.output_text.delta":
        seen.text += event.delta
    elif event.type == "response.completed":
        seen.found("`response.model_extra` of the last raw event", event.response.model_extra)


CALLERS = [
    Caller("openai-agents", "OpenAIChatCompletionsModel", chat),
    Caller("openai-agents", "OpenAIResponsesModel", responses),
]
