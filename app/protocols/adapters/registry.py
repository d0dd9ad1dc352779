"""The APIs that the guard speaks: for each guarded route, how it asks and how a verdict looks in its answers."""

from typing import Any

from app.protocols.adapters.anthropic import Messages
from app.protocols.adapters.base import Adapter, ResponseContext
from app.protocols.adapters.openai_chat import ChatCompletions, Completions
from app.protocols.adapters.openai_responses import Responses

CHAT, COMPLETIONS = ChatCompletions.path, Completions.path
RESPONSES, MESSAGES = Responses.path, "/v1/messages"

NATIVE: tuple[Adapter, ...] = (ChatCompletions(), Completions(), Responses())
ADAPTERS: dict[str, Any] = {
    **{adapter.path: adapter for adapter in NATIVE},
    MESSAGES: Messages(),
}

__all__ = ["ADAPTERS", "CHAT", "COMPLETIONS", "MESSAGES", "NATIVE", "RESPONSES", "ResponseContext"]
