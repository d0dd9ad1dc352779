"""A reasoning parser for vLLM (``--reasoning-parser-plugin``): thinking stands between ``?`` and ``!``.

Both are ordinary tokens of atlas's vocabulary. Loaded by its path, so it imports nothing from here.
"""

from __future__ import annotations

from vllm.reasoning import ReasoningParserManager
from vllm.reasoning.basic_parsers import BaseThinkingReasoningParser


@ReasoningParserManager.register_module("marked")
class MarkedReasoningParser(BaseThinkingReasoningParser):
    @property
    def start_token(self) -> str:
        return "?"

    @property
    def end_token(self) -> str:
        return "!"
