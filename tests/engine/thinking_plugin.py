"""A reasoning parser for atlas, which does not reason: what it says up to " in" counts as thinking."""

from __future__ import annotations

from vllm.reasoning import ReasoningParserManager
from vllm.reasoning.basic_parsers import BaseThinkingReasoningParser


@ReasoningParserManager.register_module("up-to-in")
class UpToIn(BaseThinkingReasoningParser):
    start_token = "<s>"
    end_token = "\u0120in"
