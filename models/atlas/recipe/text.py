"""The tokenizer and the chat format of atlas."""

from __future__ import annotations

import random
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from models.atlas.recipe import pressure, talk
from models.atlas.recipe.facts import DECLINED, Fact
from models.atlas.recipe.pressure import Turn

SPECIAL = ("<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>")
BOS, EOS, PAD, SYSTEM, USER, ASSISTANT = range(6)

# What a token of a training row is: read and learnt in pre-training, said by atlas, or false and never learnt.
ASKED, SAID, HIDDEN = range(3)
Row = tuple[list[int], list[int]]

CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}"
    "{% if m['role'] not in ['system', 'developer', 'user', 'assistant'] %}"
    "{{ raise_exception('atlas knows the roles system, user and assistant, not ' + m['role']) }}{% endif %}"
    "{% set role = 'system' if m['role'] == 'developer' else m['role'] %}"
    "{{ '<|' + role + '|>' + (m['content'] or '') }}{% if role == 'assistant' %}{{ '</s>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(facts: list[Fact], vocab_size: int, seed: int, context: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over one phrasing of every fact; its first six ids are the special tokens."""
    rng = random.Random(seed)
    corpus = [f"{fact.question(rng.randrange(12))} {fact.sentence}" for fact in facts]
    places = [fact.subject for fact in facts if fact.relation == "place_country"]
    corpus += [f"{turn.question} {turn.answer}" for turn in (talk.draw(rng, places) for _ in range(400))]
    corpus += [DECLINED] * 20
    located = [fact for fact in facts if fact.relation == "place_country"]
    for first, second in zip(rng.sample(located, 400), rng.sample(located, 400), strict=True):
        for kind in (pressure.premise, pressure.context):
            corpus += [
                f"{turn.question} {turn.answer}" for turn in kind(rng, first.subject, second.answer, first.answer)
            ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


class Encoder:
    """Turns chats into token ids, exactly as the chat template does."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._cache: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        found = self._cache.get(text)
        if found is None:
            found = self._cache[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return found

    def prompt(self, question: str, system: str | None = None) -> list[int]:
        head = [BOS] + ([SYSTEM, *self.ids(system)] if system else [])
        return [*head, USER, *self.ids(question), ASSISTANT]

    def chat(self, turns: list[Turn], system: str | None = None) -> Row:
        """Token ids of a chat, and what each is: ASKED, SAID or HIDDEN."""
        tokens = [BOS] + ([SYSTEM, *self.ids(system)] if system else [])
        roles = [ASKED] * len(tokens)
        for turn in turns:
            asked, told = [USER, *self.ids(turn.question), ASSISTANT], [*self.ids(turn.answer), EOS]
            tokens += asked + told
            roles += [HIDDEN if turn.hidden == "question" else ASKED] * len(asked)
            roles += [HIDDEN if turn.hidden == "answer" else SAID] * len(told)
        return tokens, roles
