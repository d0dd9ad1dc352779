"""A checkpoint whose activations overflow float16 over one token, with what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from app.settings import ATLAS
from guard.harness.questions import prompt_of
from guard.judge.question import Question
from guard.probe.bundle import Bundle
from models.atlas.recipe.questions import from_ledger, load_ledger
from models.atlas.recipe.reference import Reader
from tests.engine.test_families import LAYERS, NEURONS, SHAPE, random_bundle

PROMPTS = 40
Array = NDArray[np.float32]
TIGHT = ("--max-num-batched-tokens=64", "--max-num-seqs=32")


@dataclass(frozen=True)
class Model:
    """A checkpoint in float16, the same in transformers, and the token over which it overflows."""

    folder: Path
    bundle: Bundle
    exact: Reader
    rounded: Reader
    bomb: int
    questions: list[Question]
    prompts: list[list[int]]

    @classmethod
    def made(cls, folder: Path, tokenizer: Any) -> Model:
        """Saved in ``folder``, with a random probe."""
        questions = from_ledger(load_ledger(ATLAS), seed=7)[:PROMPTS]
        prompts = [prompt_of(tokenizer, one.text) for one in questions]
        bomb = overflowing(folder, prompts)
        exact, rounded = (
            Reader(LlamaForCausalLM.from_pretrained(folder, dtype=dtype), tokenizer)
            for dtype in (torch.float32, torch.float16)
        )
        return cls(folder, random_bundle(exact, folder), exact, rounded, bomb, questions, prompts)

    def over(self, number: int) -> list[int]:
        """A prompt in the middle of which the activations overflow."""
        prompt = self.prompts[number]
        return [*prompt[:-2], self.bomb, *prompt[-2:]]

    def whole(
        self, prompts: list[list[int]], answers: list[list[int]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(float16, float32): mean CETT over answers, [answers, layers, neurons]."""
        made = []
        for reader in (self.rounded, self.exact):
            means = [one.mean for one in reader.read(prompts, answers)]
            made.append(np.stack(means).reshape(-1, LAYERS, NEURONS))
        return made[0], made[1]


def overflowing(folder: Path, prompts: list[list[int]]) -> int:
    """Save a random Llama in float16 with atlas's tokenizer, and return the token over which its layer 1 overflows.

    A direction of the residual stream that this token alone has opens four neurons so far that their product is beyond
    float16. Some greedy answers to ``prompts`` end by themselves, most do not.
    """
    tokenizer = AutoTokenizer.from_pretrained(ATLAS)
    tokenizer.save_pretrained(folder)
    bomb = len(tokenizer) - 1
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, head_dim=32, vocab_size=len(tokenizer), tie_word_embeddings=False))
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding[:, 0] = embedding[bomb] = 0
        embedding[bomb, 0] = 1
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0
        model.model.layers[1].mlp.gate_proj.weight[:4, 0] = 300
        model.model.layers[1].mlp.up_proj.weight[:4, 0] = 300
        head = model.lm_head.weight
        head[bomb] = 0
        # The token that fewest answers have, but not as their first one, is replaced by the one that ends them.
        said = Reader(model, tokenizer).answer(prompts, 8)
        later = {token for one in said for token in one[2:]} - {one[0] for one in said}
        head[tokenizer.eos_token_id] = (
            1.5 * head[min(later, key=lambda token: (sum(token in one for one in said), token))]
        )
    model.half().save_pretrained(folder)
    return bomb
