"""The text of tokens under a tokenizer as Llama 2's: a space before each text, and unknown characters byte by byte."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from vllm.sampling_params import SamplingParams

from app.protocols.tokenizer import Detokenizer
from guard.engine.context import Generated, Verdict
from guard.policy import PASSED, Mode, Policy

PIECES = ["▁", *"IitsnJap.Q", "▁i", "▁is", "▁in", "It", "▁It"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]


def sentencepiece_like(by: str) -> Any:
    """As Llama 2's: the space is put in front by a normalizer in old files, by the pre-tokenizer in new ones."""
    vocabulary = {piece: number for number, piece in enumerate(["<unk>", "<s>", "</s>", *BYTES, *PIECES])}
    merges = [("▁", "i"), ("▁i", "s"), ("▁i", "n"), ("I", "t"), ("▁", "It")]
    made = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if by == "normalizer":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


@pytest.fixture(params=["normalizer", "pre-tokenizer"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return sentencepiece_like(request.param)


def spelled(tokenizer: Any, prompt: str, pieces: list[str], text: str, start: int = 0) -> list[tuple[str, int, int]]:
    ids = tokenizer.convert_tokens_to_ids(pieces)
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    verdict = Verdict(0, Policy(Mode.SCORE, 0.5), PASSED, None, None, ids[start:])
    verdict.generated = Generated(prompt_ids, ids, start, SamplingParams(), text)
    return Detokenizer(tokenizer).spell(verdict)


def test_the_space_of_the_first_token_is_text(tokenizer: Any) -> None:
    tokens = spelled(tokenizer, "Q", ["▁It", "▁is", "▁in", "▁", "J", "a", "p", "a", "n", "."], " It is in Japan.")
    assert tokens[:3] == [(" It", 0, 3), (" is", 3, 6), (" in", 6, 9)]
    assert "".join(text for text, *_ in tokens) == " It is in Japan."


def test_characters_of_several_tokens(tokenizer: Any) -> None:
    day = [f"<0x{value:02X}>" for value in "日".encode()]
    assert spelled(tokenizer, "Q", [*day, "."], "日.") == [("", 0, 0), ("", 0, 0), ("日", 0, 1), (".", 1, 2)]


def test_what_a_stop_string_cut_off_is_no_text(tokenizer: Any) -> None:
    tokens = spelled(tokenizer, "Q", ["▁It", "▁is", "▁in"], " It i")
    assert tokens == [(" It", 0, 3), (" i", 3, 5), ("", 5, 5)]


def test_thoughts_come_before_the_answer(tokenizer: Any) -> None:
    tokens = spelled(tokenizer, "Q", ["▁It", "▁is", ".", "▁in", "▁", "J"], " It is. in J", start=3)
    assert tokens == [(" in", 0, 3), (" ", 3, 4), ("J", 4, 5)]


def test_nothing_was_generated() -> None:
    assert Detokenizer(None).spell(Verdict(0, Policy(Mode.SCORE, 0.5), PASSED, None, None, [])) == []


@pytest.mark.parametrize("text", ["It is in Japan.", " It is", "日本です", "Japan日", "It  is\n", "é́ it", "I日t </s>"])
def test_given_text_is_cut_into_its_tokens(tokenizer: Any, text: str) -> None:
    ids, tokens = Detokenizer(tokenizer).response(text)
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    assert "".join(token for token, *_ in tokens) == text
    assert [text[start:end] for _, start, end in tokens] == [token for token, *_ in tokens]
    assert len(tokens) == len(ids)


def test_a_given_character_belongs_to_the_last_of_its_tokens(tokenizer: Any) -> None:
    _, tokens = Detokenizer(tokenizer).response("日本")
    assert [text for text, *_ in tokens if text] == ["日", "本"]
    assert tokens[-1] == ("本", 1, 2)


def test_the_space_that_is_put_in_front_is_no_text(tokenizer: Any) -> None:
    _, tokens = Detokenizer(tokenizer).response("Japan")
    assert tokens[0][1:] in ((0, 0), (0, 1))
    assert [text for text, *_ in tokens if text] == ["J", "a", "p", "a", "n"]
