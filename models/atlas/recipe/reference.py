"""The reference: what a transformers model does on its own answers, by hooks on layers.

Answers, mean CETT of every neuron, entropy, surprise, layers' states. Parity tests hold the engine's taps to it; fits
use the engine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from guard.probe.cett import column_norms, contributions
from guard.probe.heads import Head
from guard.probe.signals import ALWAYS, ATTENTION, BLOCK, NEURONS, Source, TokenSignals, names

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything measured on one answer of n tokens (end-of-sequence left out).

    mean: float32 [layers * neurons], CETT averaged over the last prompt token and the answer's tokens.
    output: float32 [layers * hidden], the output of each layer's MLP, averaged the same way.
    tokens: float32 [n + 1, k] CETT of chosen neurons (the last prompt token first), when any were chosen.
    entropy, logprob, margin, top_mass: float32 [n].
    states: by the name of a head, float32 [n + 1, layers, width]: what it reads of the layers that were chosen.
    """

    mean: Array
    output: Array
    tokens: Array
    entropy: Array
    logprob: Array
    margin: Array
    top_mass: Array
    states: dict[str, Array] = field(default_factory=dict)


class Reader:
    """Wraps a causal language model whose layers have ``mlp.down_proj``, or of which no neuron is read."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.layers = [layer.mlp.down_proj for layer in model.model.layers if hasattr(layer.mlp, "down_proj")]
        self.norms = _stacked([column_norms(layer.weight) for layer in self.layers], 0)

    def prompt(self, question: str) -> list[int]:
        """Token ids of a chat with this one message, up to where the assistant starts."""
        message = [{"role": "user", "content": question}]
        return list(self.tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False))

    @torch.no_grad()
    def answer(self, prompts: Sequence[list[int]], new_tokens: int = 24, batch: int = 128) -> list[list[int]]:
        """Greedy answers as token ids, without the end-of-sequence token."""
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        answers = []
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch]
            ids, mask = _pad(part, pad, left=True)
            out = self.model.generate(
                ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, pad_token_id=pad, eos_token_id=end
            )
            for row in out[:, ids.shape[1] :].tolist():
                answers.append(row[: row.index(end)] if end in row else row)
        return answers

    @torch.no_grad()
    def read(
        self,
        prompts: Sequence[list[int]],
        answers: Sequence[list[int]],
        chosen: tuple[NDArray[np.int32], NDArray[np.int32]] | None = None,
        batch: int = 64,
        heads: Mapping[str, Head] | None = None,
    ) -> Iterator[Reading]:
        """Measure each answer in one teacher-forced pass; ``chosen`` is (layer, neuron) of the tokens to keep; of
        ``heads`` the states are."""
        for start in range(0, len(prompts), batch):
            part = list(zip(prompts[start : start + batch], answers[start : start + batch], strict=True))
            ids, mask = _pad([p + a for p, a in part], self.tokenizer.pad_token_id, left=False)
            with self._captured() as seen, self._states(heads or {}) as states:
                logits = self.model(ids, attention_mask=mask).logits
            for row, (prompt, answer) in enumerate(part):
                span = slice(len(prompt) - 1, len(prompt) + len(answer))
                cett = _stacked(
                    [contributions(z[row, span], h[row, span], n) for (z, h), n in zip(seen, self.norms, strict=True)],
                    1,
                    len(answer) + 1,
                )
                kept = cett[:, chosen[0], chosen[1]] if chosen is not None else cett[:, :0, 0]
                logp = logits[row, span.start : span.stop - 1].float().log_softmax(-1)
                ranked = logp.sort(-1, descending=True).values
                drawn = logp.gather(1, torch.tensor(answer, dtype=torch.int64)[:, None])[:, 0]
                yield Reading(
                    cett.mean(0).flatten().numpy(),
                    _stacked([h[row, span].float().mean(0) for _, h in seen], 0).flatten().numpy(),
                    kept.numpy(),
                    (-(logp.exp() * logp).sum(-1)).numpy(),
                    drawn.numpy(),
                    (ranked[:, 0] - ranked[:, 1]).numpy(),
                    ranked[:, :10].exp().sum(-1).numpy(),
                    {name: torch.stack([x[row, span] for x in one], 1).float().numpy() for name, one in states.items()},
                )

    @contextmanager
    def _captured(self) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
        """(z, h) of every layer's ``down_proj`` during one forward pass, in order of layers."""
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        hooks = [
            layer.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
            for layer in self.layers
        ]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _states(self, heads: Mapping[str, Head]) -> Iterator[dict[str, list[torch.Tensor]]]:
        """What heads read of their layers during one forward pass, by name and in order of layers."""
        seen: dict[str, list[torch.Tensor]] = {name: [] for name in heads}
        hooks = []
        for name, head in heads.items():
            for layer in head.layer.tolist():
                block = self.model.model.layers[layer]
                if name == BLOCK:
                    hooks.append(
                        block.register_forward_hook(lambda _, inputs, out, to=seen[name]: to.append(stream(out)))
                    )
                    continue
                attention = block.self_attn
                into = (
                    attention.o_proj if name == ATTENTION else getattr(attention, "qkv_proj", None) or attention.q_proj
                )
                hooks.append(into.register_forward_pre_hook(lambda _, inputs, to=seen[name]: to.append(inputs[0])))
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()


def _stacked(layers: list[torch.Tensor], at: int, rows: int = 0) -> torch.Tensor:
    """One tensor of all layers'; of none an empty one, of so many rows."""
    return torch.stack(layers, at) if layers else torch.zeros(rows, 0, 0)


def stream(output: Any) -> torch.Tensor:
    """What a layer returns: the stream, or a tuple that begins with it."""
    stream: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return stream


def signals_of(
    reading: Reading, coefficient: Array, heads: Mapping[str, Head] | None = None, measured: Collection[str] = ALWAYS
) -> TokenSignals:
    """What an engine would have ``measured``: scores of the probe's neurons and heads, the last prompt token's apart,
    and draws."""
    scores = {NEURONS: (reading.tokens @ coefficient).astype(np.float32)} | {
        name: head.score(reading.states[name]).astype(np.float32) for name, head in (heads or {}).items()
    }
    drawn = {name: getattr(reading, name) for name in names(Source.DRAW, frozenset(measured))}
    values = {name: one[1:] for name, one in scores.items()} | drawn
    return TokenSignals({name: float(one[0]) for name, one in scores.items()}, values)


def _pad(rows: Sequence[list[int]], pad: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for i, row in enumerate(rows):
        at = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, at] = torch.tensor(row)
        mask[i, at] = 1
    return ids, mask
