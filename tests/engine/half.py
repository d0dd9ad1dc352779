"""Models of half precision: what their scores are held to, and a checkpoint whose activations overflow float16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from app.settings import ATLAS
from guard.fit.reader import Reader
from guard.probe.bundle import Bundle
from guard.probe.readout import Signals
from tests.engine.harness import Produced
from tests.engine.test_adversity import read
from tests.engine.test_parity import signals

# The engine's scores may be so many times as far from float32 as transformers' in the same precision are, by root mean
# squares over all tokens of a test.
NEAR = 1.5


class References:
    """transformers, in float32 and in the precision that the engine has."""

    def __init__(self, exact: Reader, rounded: Reader, bundle: Bundle) -> None:
        self._exact, self._rounded, self._bundle = exact, rounded, bundle

    def hold(self, produced: list[Produced], prompts: list[list[int]], damp: float = 1.0) -> None:
        self.hold_signals([signals(one) for one in produced], prompts, [one.tokens for one in produced], damp)
        for one in produced:  # what vLLM reports, by another path, from the same logits
            np.testing.assert_allclose(signals(one).logprob, one.logprobs, rtol=1e-4, atol=1e-4)

    def hold_signals(
        self, measured: list[Signals], prompts: list[list[int]], answers: list[list[int]], damp: float = 1.0
    ) -> None:
        exact, rounded = (
            scores(read(reader, self._bundle, prompts, answers, damp)) for reader in (self._exact, self._rounded)
        )
        assert_near(scores(measured), rounded, exact)


def assert_near(got: NDArray[np.float32], rounded: NDArray[np.float32], exact: NDArray[np.float32]) -> None:
    """``got`` is no further from ``exact`` than NEAR times what ``rounded``, transformers in that precision, is."""
    allowed = size(rounded - exact)
    print(f"values of {size(exact):.4g}, transformers {allowed:.3g} off, engine {size(got - exact):.3g} off")
    assert 0 < allowed < 0.02 * size(exact), "the tolerance must mean something"
    assert size(got - exact) <= NEAR * allowed


def scores(measured: list[Signals]) -> NDArray[np.float32]:
    """Of every token but the last of each answer, which never enters the model."""
    return np.concatenate([np.append(one.lead, one.neurons[:-1]) for one in measured])


def size(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def overflowing(folder: Path, shape: dict[str, object], prompts: list[list[int]]) -> int:
    """Save a random Llama in float16 with atlas's tokenizer, and return the token over which its layer 1 overflows.

    A direction of the residual stream that this token alone has opens four neurons so far that their product is beyond
    float16. Some greedy answers to ``prompts`` end by themselves, most do not.
    """
    tokenizer = AutoTokenizer.from_pretrained(ATLAS)
    tokenizer.save_pretrained(folder)
    bomb = len(tokenizer) - 1
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape, head_dim=32, vocab_size=len(tokenizer), tie_word_embeddings=False))
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
