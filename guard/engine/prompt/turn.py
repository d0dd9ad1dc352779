"""Where an answer begins: the assistant's turn in a prompt, and the end of thinking.

What stands there already is part of the answer that goes on after it.

A caller may put the beginning of an answer into the prompt, and have the model go on. The risk of the few tokens that
it adds says nothing of the sentence that they complete; so the turn is scored as a whole, as ``/risk`` would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What a request may ask of templates of thinking models.
_WAYS: tuple[dict[str, bool], ...] = (
    {},
    *({name: value} for name in ("enable_thinking", "thinking") for value in (False, True)),
)


@dataclass(frozen=True, slots=True)
class Turns:
    """Knows one chat template.

    headers: token ids with which the assistant's turn begins (``<|im_start|>assistant``), each with the tokens of white
    space that follow it. ends: tokens that end a turn.
    """

    headers: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    ends: frozenset[int] = frozenset()

    @classmethod
    def of(cls, tokenizer: Any, template: str | None, ends: frozenset[int]) -> Turns:
        """Finds the headers by rendering a chat; without a template that renders one there are none.

        Where a request may switch thinking off, some templates say so in words that follow the header.
        """

        def render(**how: Any) -> list[int]:
            asked = {"role": "user", "content": "a"}
            try:
                return list(tokenizer.apply_chat_template([asked], chat_template=template, return_dict=False, **how))
            except Exception:  # a template may raise anything of its own
                return []

        if getattr(tokenizer, "chat_template", None) is None and template is None:
            return cls(ends=ends)
        headers = set()
        for how in _WAYS:
            asked, opened = render(add_generation_prompt=False, **how), render(add_generation_prompt=True, **how)
            if asked and opened[: len(asked)] == asked and len(opened) > len(asked):
                headers.add(_split(opened[len(asked) :], lambda token: str(tokenizer.decode([token]))))
        return cls(tuple(sorted(headers)), ends)

    def start(self, prompt_ids: Sequence[int]) -> int:
        """The position of the first token of the assistant's turn that the prompt ends in, its length without one.

        Of several beginnings the last counts, and where a turn has ended after it, what follows its end.
        """
        prompt = list(prompt_ids)
        found = max((_after(prompt, *header) for header in self.headers), default=-1)
        if found < 0:
            return len(prompt)
        ended = [at + 1 for at in range(found, len(prompt)) if prompt[at] in self.ends]
        return ended[-1] if ended else found


def _split(header: list[int], spell: Callable[[int], str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A header without the white space at its end, which may become one token with what follows; and that."""
    last = len(header)
    while last > 1 and not spell(header[last - 1]).strip():
        last -= 1
    return tuple(header[:last]), tuple(header[last:])


def _after(prompt: list[int], header: tuple[int, ...], space: tuple[int, ...]) -> int:
    """The position after the last occurrence of ``header``, and after ``space`` if that follows; -1 without one."""
    for at in range(len(prompt) - len(header), -1, -1):
        if tuple(prompt[at : at + len(header)]) == header:
            end = at + len(header)
            return end + len(space) if tuple(prompt[end : end + len(space)]) == space else end
    return -1


class Reasoning:
    """The reasoning parser that the engine was started with."""

    def __init__(self, parser: Any, tokenizer: Any) -> None:
        self._parser, self._tokenizer = parser, tokenizer

    @classmethod
    def of(cls, engine: Any) -> Reasoning | None:
        """None where the engine has no reasoning parser: all that it says is answer."""
        name = engine.vllm_config.structured_outputs_config.reasoning_parser
        if not name:
            return None
        from vllm.reasoning import ReasoningParserManager

        return cls(ReasoningParserManager.get_reasoning_parser(name), engine.get_tokenizer())

    def begin(self, prompt_ids: Sequence[int], request: Mapping[str, Any]) -> ReasoningSpan | None:
        """The thinking that follows this prompt; None if the answer begins at once.

        ``request`` is what vLLM's route gave ``generate`` by keyword. Its ``reasoning_ended`` does not count: it tells
        the engine where a grammar applies, and is also set where thoughts are only not shown.
        """
        parser = self._of(request)
        return None if parser.is_reasoning_end(list(prompt_ids)) else ReasoningSpan(parser, self._tokenizer)

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


class ReasoningSpan:
    """One sequence's thoughts."""

    def __init__(self, parser: Any, tokenizer: Any) -> None:
        self._parser, self._tokenizer = parser, tokenizer

    def ended_by(self, token_ids: list[int]) -> bool:
        """Whether the last of these generated tokens ends the thinking."""
        return bool(self._parser.is_reasoning_end_streaming(token_ids, token_ids[-1:]))

    def followed_by(self, token_ids: list[int]) -> bool:
        """Whether these tokens, which came after the thoughts, say anything."""
        return bool(str(self._tokenizer.decode(token_ids, skip_special_tokens=True)).strip())
