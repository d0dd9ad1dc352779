"""The APIs that the guard speaks: for each guarded route, how it asks and how a verdict looks in its answers."""

from typing import Any

from app.protocols.adapters.anthropic import Messages
from app.protocols.adapters.base import Adapter, ResponseContext
from app.protocols.adapters.openai_chat import ChatCompletions, Completions
from app.protocols.adapters.openai_responses import Responses

CHAT, COMPLETIONS = ChatCompletions.path, Completions.path
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"

NATIVE: tuple[Adapter, ...] = (ChatCompletions(), Completions())
ADAPTERS: dict[str, Any] = {
    **{adapter.path: adapter for adapter in NATIVE},
    RESPONSES: Responses(),
    MESSAGES: Messages(),
}

__all__ = ["ADAPTERS", "CHAT", "COMPLETIONS", "MESSAGES", "NATIVE", "RESPONSES", "ResponseContext"]
