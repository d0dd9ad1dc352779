"""The APIs that the guard speaks: for each guarded route, how it asks and how a verdict looks in its answers."""

from app.protocols.adapters.anthropic import Messages
from app.protocols.adapters.base import Adapter, ResponseContext
from app.protocols.adapters.openai_chat import ChatCompletions, Completions
from app.protocols.adapters.openai_responses import Responses

CHAT, COMPLETIONS, RESPONSES, MESSAGES = ChatCompletions.path, Completions.path, Responses.path, Messages.path
ADAPTERS: dict[str, Adapter] = {
    adapter.path: adapter for adapter in (ChatCompletions(), Completions(), Responses(), Messages())
}
GUARDED = frozenset(ADAPTERS)

__all__ = ["ADAPTERS", "CHAT", "COMPLETIONS", "GUARDED", "MESSAGES", "RESPONSES", "Adapter", "ResponseContext"]
