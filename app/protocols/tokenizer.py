"""From tokens to text with offsets, and from text and messages to token ids, by the model's own tokenizer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from app.protocols.wire import Token
from guard.engine.context import Generated, Verdict
from guard.errors import RequestError


class Detokenizer:
    """Wraps the engine's tokenizer; given text needs a fast one, which knows offsets."""

    def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template

    def spell(self, verdict: Verdict) -> list[Token]:
        """Text and character offsets of a generated answer's tokens; joined, they are the text that left of it.

        A token that ends inside a character has no text of its own: the character belongs to the one completing it. Nor
        has one of which nothing was shown, because a stop string cut it off.
        """
        generated = verdict.generated
        if generated is None:  # nothing was generated
            return [("", 0, 0)] * len(verdict.token_ids)
        pieces = list(texts(self._tokenizer, generated))
        begins = sum(map(len, pieces[: generated.start]))
        shown = generated.text[begins:]
        own = pieces[generated.start : generated.start + len(verdict.token_ids)]
        return _cut(shown, [min(end, len(shown)) for end in itertools.accumulate(map(len, own))])

    def response(self, text: str) -> tuple[list[int], list[Token]]:
        """Token ids of a given answer, with text and offsets; joined, they are the text.

        A character that several tokens make up belongs to the last of them, as in ``spell``.
        """
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends, end = [], len(text)
        for first, last in reversed(encoded["offset_mapping"]):
            ends.append(end)
            if first < last:  # some tokens stand for nothing in the text
                end = min(end, first)
        return list(encoded["input_ids"]), _cut(text, ends[::-1])

    def prompt(self, text: str) -> list[int]:
        """Token ids of a plain prompt, as the completions route reads it."""
        return list(self._tokenizer.encode(text))

    def messages(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Token ids of a chat up to where the assistant starts to speak. Raises RequestError naming ``messages``."""
        if self._tokenizer.chat_template is None and self._chat_template is None:
            raise RequestError("this model has no chat template; give `prompt` instead", param="messages")
        try:
            ids = self._tokenizer.apply_chat_template(
                list(messages), chat_template=self._chat_template, add_generation_prompt=True, return_dict=False
            )
        except Exception as error:  # a template may raise anything of its own
            raise RequestError(f"the chat template does not accept these messages: {error}", param="messages") from None
        return list(ids)


def _cut(text: str, ends: Sequence[int]) -> list[Token]:
    """Tokens that end at these characters of the text, each beginning where the one before it ends."""
    return [(text[start:end], start, end) for start, end in itertools.pairwise([0, *ends])]


def texts(tokenizer: Any, generated: Generated) -> Iterator[str]:
    """What each token adds to the text, the first being the first generated one, and nothing cut off at the end.

    A token that ends inside a character adds nothing: the character belongs to the one completing it.
    """
    given = generated.params
    params = SamplingParams(  # without stop strings: what they cut is cut already
        skip_special_tokens=given.skip_special_tokens,
        spaces_between_special_tokens=given.spaces_between_special_tokens,
    )
    request: Any = SimpleNamespace(
        request_id="tokens", prompt_token_ids=generated.prompt_ids, prompt_embeds=None, sampling_params=params
    )
    detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, request)
    for token in generated.token_ids:
        detokenizer.update([token], stop_terminated=False)
        yield detokenizer.get_next_output_text(finished=False, delta=True)
