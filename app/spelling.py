"""From token ids to text with offsets, and from messages to token ids, by the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

from app.wire import Token
from guard.errors import RequestError


class Speller:
    """Wraps a fast Hugging Face tokenizer."""

    def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template

    def spell(self, ids: Sequence[int]) -> list[Token]:
        """Text and character offsets of generated tokens.

        A token that ends inside a character has no text of its own: the character belongs to the one completing it.
        """
        stream = DecodeStream(skip_special_tokens=True)
        tokens: list[Token] = []
        at = 0
        for token_id in ids:
            text = stream.step(self._tokenizer.backend_tokenizer, token_id) or ""
            tokens.append((text, at, at + len(text)))
            at += len(text)
        return tokens

    def response(self, text: str) -> tuple[list[int], list[Token]]:
        """Token ids of a given answer, with text and offsets."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        tokens = [(text[start:end], start, end) for start, end in encoded["offset_mapping"]]
        return list(encoded["input_ids"]), tokens

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
