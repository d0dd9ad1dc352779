"""Where a reasoning model stops thinking: the risk is that of the answer, not of the thoughts before it.

vLLM's own reasoning parsers (``--reasoning-parser``) say so, as they do for its routes; written against vLLM 0.32
(``reasoning/abs_reasoning_parsers.py``; the same in 0.26).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Thinker:
    """The reasoning parser that the engine was started with."""

    def __init__(self, parser: Any, tokenizer: Any) -> None:
        self._parser, self._tokenizer = parser, tokenizer

    @classmethod
    def of(cls, engine: Any) -> Thinker | None:
        """None where the engine has no reasoning parser: all that it says is answer."""
        name = engine.vllm_config.structured_outputs_config.reasoning_parser
        if not name:
            return None
        from vllm.reasoning import ReasoningParserManager

        return cls(ReasoningParserManager.get_reasoning_parser(name), engine.get_tokenizer())

    def begin(self, prompt_ids: Sequence[int], request: Mapping[str, Any]) -> Thinking | None:
        """The thinking that follows this prompt; None if the answer begins at once.

        ``request`` is what vLLM's route gave ``generate`` by keyword. Its ``reasoning_ended`` does not count: it tells
        the engine where a grammar applies, and is also set where thoughts are only not shown.
        """
        parser = self._of(request)
        return None if parser.is_reasoning_end(list(prompt_ids)) else Thinking(parser, self._tokenizer)

    def answer_start(self, prompt_ids: Sequence[int], turn: int, request: Mapping[str, Any]) -> int:
        """Where in a prompt that ends in the assistant's turn, which begins at ``turn``, its answer begins: after the
        thoughts that stand there, at the prompt's end while they go on."""
        ids, parser = list(prompt_ids), self._of(request)
        if not parser.is_reasoning_end(ids):
            return len(ids)
        # Once ended it stays so: halve, since each look may read the whole prompt.
        low, high = turn, len(ids)
        while low < high:
            middle = (low + high) // 2
            if parser.is_reasoning_end(ids[:middle]):
                high = middle
            else:
                low = middle + 1
        return low

    def _of(self, request: Mapping[str, Any]) -> Any:
        return self._parser(self._tokenizer, **(request.get("reasoning_parser_kwargs") or {}))


class Thinking:
    """One sequence's thoughts."""

    def __init__(self, parser: Any, tokenizer: Any) -> None:
        self._parser, self._tokenizer = parser, tokenizer

    def ended_by(self, token_ids: list[int]) -> bool:
        """Whether the last of these generated tokens ends the thinking."""
        return bool(self._parser.is_reasoning_end_streaming(token_ids, token_ids[-1:]))

    def followed_by(self, token_ids: list[int]) -> bool:
        """Whether these tokens, which came after the thoughts, say anything."""
        return bool(str(self._tokenizer.decode(token_ids, skip_special_tokens=True)).strip())
