"""The APIs that the guard speaks: for each guarded route, how it asks and how a verdict looks in its answers."""

from app.protocols.adapters.anthropic import Messages
from app.protocols.adapters.base import Adapter, ResponseContext
from app.protocols.adapters.openai_chat import ChatCompletions, Completions
from app.protocols.adapters.openai_responses import Responses

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"

ADAPTERS: dict[str, Adapter] = {
    CHAT: ChatCompletions(),
    COMPLETIONS: Completions(),
    RESPONSES: Responses(),
    MESSAGES: Messages(),
}

__all__ = ["ADAPTERS", "CHAT", "COMPLETIONS", "MESSAGES", "RESPONSES", "Adapter", "ResponseContext"]
