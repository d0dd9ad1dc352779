"""OpenAI's chat completions and completions: answers are ``choices``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from vllm.entrypoints.openai.chat_completion import protocol as chat
from vllm.entrypoints.openai.completion import protocol as completion

from app import errors
from app.protocols.adapters.base import (
    Adapter,
    GuardedRequest,
    ResponseContext,
    keep_only,
    recount,
    refuses,
    withheld,
)
from app.protocols.adapters.sse import DONE, FrameStream, frame
from app.protocols.options import FIELD
from app.protocols.wire import Hallucination
from guard.engine.context import RequestContext, Verdict

_RUNNING = '"finish_reason":null'
# What of a choice may stay when its answer is withheld: the caller's own prompt, of which the engine client lets go no
# more than its own tokens.
_KEPT = frozenset({"index", "prompt_token_ids", "prompt_logprobs"})


class ChatCompletionRequest(GuardedRequest, chat.ChatCompletionRequest):
    """vLLM's, guarded."""


class ChatCompletionResponse(chat.ChatCompletionResponse):
    """vLLM's, with the verdict."""

    hallucination: Hallucination


class CompletionRequest(GuardedRequest, completion.CompletionRequest):
    """vLLM's, guarded."""


class CompletionResponse(completion.CompletionResponse):
    """vLLM's, with the verdict."""

    hallucination: Hallucination


class Choices(Adapter):
    """What both have in common."""

    def write(self, content: dict[str, Any], context: ResponseContext) -> None:
        for choice in content.get("choices", []):
            verdict = context.call.verdicts.get(choice["index"])
            if verdict is not None and withheld(verdict):
                self.withhold(choice, verdict, context)
            mark_tokens(choice, context.call, 0)
        content[FIELD] = context.block(context.verdicts)
        recount(content.get("usage"), context.call, "completion_tokens", "total_tokens")

    def stream(self, context: ResponseContext) -> ChoiceStream:
        return ChoiceStream(self, context)

    def withhold(self, choice: dict[str, Any], verdict: Verdict, context: ResponseContext) -> None:
        """Put the refusal, or the message, in the place of a withheld answer, or after what of it was shown."""
        keep_only(choice, _KEPT)
        choice["finish_reason"] = "content_filter" if refuses(verdict) else "stop"
        self.replace(choice, verdict, context)

    @abstractmethod
    def replace(self, choice: dict[str, Any], verdict: Verdict, context: ResponseContext) -> None:
        """Put it there."""


class ChatCompletions(Choices):
    path, serving, method = "/v1/chat/completions", "openai_serving_chat", "create_chat_completion"
    request, response = ChatCompletionRequest, ChatCompletionResponse
    turns, lengths, counts = "messages", ("max_completion_tokens", "max_tokens"), ("n",)

    def wants_token_risk(self, asked: Any) -> bool:
        return bool(asked.logprobs)

    def replace(self, choice: dict[str, Any], verdict: Verdict, context: ResponseContext) -> None:
        part = "delta" if "delta" in choice else "message"
        said: dict[str, Any] = {"content": None, "refusal": context.refusal}
        if not refuses(verdict):
            said = {"content": context.stand_in(verdict)}
        choice[part] = {"role": "assistant", **said}


class Completions(Choices):
    path, serving, method = "/v1/completions", "openai_serving_completion", "create_completion"
    request, response = CompletionRequest, CompletionResponse
    turns, lengths, counts, prompts = None, ("max_tokens",), ("n", "best_of"), "prompt"
    separates_thoughts = False  # vLLM (0.32) parses nothing on this route: what was drawn is the text

    def shows_nothing(self, asked: Any) -> bool:
        """vLLM (0.32) draws a token nevertheless, and leaves it out of the text."""
        return bool(asked.echo) and asked.max_tokens == 0

    def replace(self, choice: dict[str, Any], verdict: Verdict, context: ResponseContext) -> None:
        choice["text"] = "" if refuses(verdict) else context.stand_in(verdict)


class ChoiceStream(FrameStream):
    """A stream of chunks; the verdict stands in the chunk that has the ``finish_reason``, and in the usage."""

    def __init__(self, adapter: Choices, context: ResponseContext) -> None:
        self._adapter, self._context = adapter, context
        self._marked: dict[int, int] = {}  # logprobs items sent, by choice

    def untouched(self, frame: str) -> bool:
        # These characters cannot be part of a string in JSON, where quotes are escaped.
        if self._context.call.policy.token_risk_in_stream or '"usage":{' in frame:
            return False
        running = frame.count(_RUNNING)
        return running > 0 and running == frame.count('"finish_reason":')

    def edit(self, content: dict[str, Any], event: str | None) -> Iterable[bytes]:
        if "error" in content:
            content = errors.shortened(content)
        else:
            self._tell(content)
        return (frame(content, event),)

    def _tell(self, content: dict[str, Any]) -> None:
        call = self._context.call
        ended = []
        for choice in content.get("choices", []):
            index = choice["index"]
            verdict = call.verdicts.get(index)
            if choice.get("finish_reason") is not None and verdict is not None:
                ended.append(verdict)
                if withheld(verdict):
                    self._adapter.withhold(choice, verdict, self._context)
            self._marked[index] = mark_tokens(choice, call, self._marked.get(index, 0))
        if ended or any(choice.get("finish_reason") is not None for choice in content.get("choices", [])):
            content[FIELD] = self._context.block(ended)
        usage, choices = content.get("usage"), content.get("choices")
        if usage and choices:  # what runs along with an answer counts that one alone
            recount(usage, call, "completion_tokens", "total_tokens", choices[0]["index"])
        elif usage:
            usage[FIELD] = self._context.block(self._context.verdicts)
            recount(usage, call, "completion_tokens", "total_tokens")

    def error(self, message: str, status: int = 500) -> bytes:
        return frame(errors.body(status, message)) + DONE


def mark_tokens(choice: dict[str, Any], call: RequestContext, first: int) -> int:
    """Give each logprobs item its token's risk; ``first`` of the choice's items have gone. How many have by now."""
    items = (choice.get("logprobs") or {}).get("content") or []
    risks = call.token_risks.get(choice["index"], [])
    for position, item in enumerate(items, first):
        item["risk"] = risks[position] if position < len(risks) else None
    return first + len(items)
