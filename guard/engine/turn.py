"""Where the assistant's turn begins in a prompt: what stands there already is part of the answer that goes on after it.

A caller may put the beginning of an answer into the prompt, and have the model go on. The risk of the few tokens that
it adds says nothing of the sentence that they complete; so the turn is scored as a whole, as ``/risk`` would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
