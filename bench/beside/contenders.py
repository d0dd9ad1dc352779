"""Those that are compared: each answers a prompt and says how risky its answer is.

Besides the guard and plain vLLM, which says nothing, they are what a person could run instead: Python hooks in vLLM's
eager mode, as published servers of H-Neurons have them; hooks around transformers' ``generate``; hprobes, which reads
an answer in a pass of its own; and self-consistency, which asks again.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from bench.beside.rouge import rouge_l
from guard.evaluation.random_baseline import flat
from guard.probe.bundle import Bundle
from guard.probe.cett import EPSILON

SAMPLES = 5
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Answer:
    """tokens: of the answer, without the end of the sequence. risk: higher is riskier, of no scale; None: not told.
    seconds: from the question to both."""

    text: str
    tokens: int
    risk: float | None
    seconds: float


class Contender(Protocol):
    """``answer`` has at most ``clients`` prompts under way, and returns answers in their order."""

    name: str

    async def answer(self, prompts: Sequence[list[int]], clients: int) -> list[Answer]: ...


@dataclass(slots=True)
class _Concurrent(ABC):
    """Contenders that take one prompt after the other, from as many clients as there are."""

    engine: Any
    max_tokens: int

    async def answer(self, prompts: Sequence[list[int]], clients: int) -> list[Answer]:
        found: dict[int, Answer] = {}
        waiting = iter(range(len(prompts)))

        async def client() -> None:
            for number in waiting:
                found[number] = await self.one(prompts[number])

        await asyncio.gather(*(client() for _ in range(clients)))
        return [found[number] for number in range(len(prompts))]

    @abstractmethod
    async def one(self, prompt: list[int]) -> Answer: ...

    async def _generated(self, prompt: list[int], **options: Any) -> list[Any]:
        """vLLM's outputs."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        options = {"temperature": 0.0, **options}
        params = SamplingParams(max_tokens=self.max_tokens, output_kind=RequestOutputKind.FINAL_ONLY, **options)
        last: Any = None
        asked = {"type": "token", "prompt_token_ids": prompt}
        async for output in self.engine.generate(asked, params, f"beside-{next(_numbers)}"):
            last = output
        return list(last.outputs)


class Plain(_Concurrent):
    """vLLM itself."""

    name = "vLLM, compiled, no risk"

    async def one(self, prompt: list[int]) -> Answer:
        began = time.perf_counter()
        (output,) = await self._generated(prompt)
        return Answer(output.text, len(output.token_ids), None, time.perf_counter() - began)


class Guarded(_Concurrent):
    """The guard, with all that its probe reads."""

    name = "hneuron-guard, compiled"

    async def one(self, prompt: list[int]) -> Answer:
        began = time.perf_counter()
        verdict = await self.engine.answer(prompt, self.max_tokens, f"beside-{next(_numbers)}")
        seconds = time.perf_counter() - began
        text = self.engine.get_tokenizer().decode(verdict.token_ids, skip_special_tokens=True)
        return Answer(text, len(verdict.token_ids), verdict.risk, seconds)


class Hooked(_Concurrent):
    """vLLM in eager mode with Python hooks (``bench.beside.hooks``): the neurons' mean over the answer."""

    name = "vLLM, eager, Python hooks"

    async def one(self, prompt: list[int]) -> Answer:
        began = time.perf_counter()
        name = str(next(_numbers))
        (output,) = await self._generated(prompt, extra_args={"beside": name})
        (scores,) = await self.engine.collective_rpc("take_scores", args=(name,))
        return Answer(output.text, len(output.token_ids), float(np.mean(scores)), time.perf_counter() - began)


class SelfConsistent(_Concurrent):
    """Plain vLLM asked again: one less the mean ROUGE-L of the answer with SAMPLES at temperature 1.

    Lexical similarity as a measure of confidence: Fomicheva et al., TACL 8 (2020), section 3.2.2.
    """

    name = f"self-consistency, {SAMPLES} samples"

    async def one(self, prompt: list[int]) -> Answer:
        began = time.perf_counter()
        (output,), samples = await asyncio.gather(
            self._generated(prompt), self._generated(prompt, n=SAMPLES, temperature=1.0)
        )
        alike = float(np.mean([rouge_l(output.text, sample.text) for sample in samples]))
        return Answer(output.text, len(output.token_ids), 1 - alike, time.perf_counter() - began)


class _Transformers(ABC):
    """Contenders that have transformers' ``generate`` answer the prompts of all clients at once."""

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int) -> None:
        self._model, self._tokenizer, self._max_tokens = model, tokenizer, max_tokens

    async def answer(self, prompts: Sequence[list[int]], clients: int) -> list[Answer]:
        found: list[Answer] = []
        for start in range(0, len(prompts), clients):
            own = prompts[start : start + clients]
            began = time.perf_counter()
            told = self._told(own)
            seconds = time.perf_counter() - began
            found += [Answer(text, tokens, risk, seconds) for text, tokens, risk in told]
        return found

    @abstractmethod
    def _told(self, prompts: Sequence[list[int]]) -> list[tuple[str, int, float]]:
        """Of each prompt the answer, its tokens and its risk."""

    @torch.inference_mode()
    def _generated(self, prompts: Sequence[list[int]]) -> list[tuple[str, int]]:
        """Of each prompt the answer, and its tokens."""
        padding, end = self._tokenizer.pad_token_id, self._tokenizer.eos_token_id
        width = max(map(len, prompts))
        ids = torch.tensor([[padding] * (width - len(one)) + one for one in prompts])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts])
        made = self._model.generate(
            ids, attention_mask=mask, max_new_tokens=self._max_tokens, do_sample=False, pad_token_id=padding
        )
        rows = (row[: row.index(end)] if end in row else row for row in made[:, width:].tolist())
        return [(self._tokenizer.decode(row, skip_special_tokens=True), len(row)) for row in rows]


class HookedTransformers(_Transformers):
    """A hook at each layer with neurons: their mean over the last prompt token and the answer."""

    name = "transformers, hooks"

    def __init__(self, model: Any, tokenizer: Any, bundle: Bundle, max_tokens: int) -> None:
        super().__init__(model, tokenizer, max_tokens)
        self._neurons = by_layer(bundle)

    def _told(self, prompts: Sequence[list[int]]) -> list[tuple[str, int, float]]:
        steps: list[torch.Tensor] = []
        with self._hooks(steps):
            answers = self._generated(prompts)
        scores = torch.stack(steps, 1)
        # The last prompt token's, and those of the tokens that were fed back.
        return [
            (text, count, float(own[: count + 1].mean())) for (text, count), own in zip(answers, scores, strict=True)
        ]

    @contextmanager
    def _hooks(self, steps: list[torch.Tensor]) -> Iterator[None]:
        """Each forward pass appends the scores of the last token of each row."""
        layers, first = self._model.model.layers, min(self._neurons)

        def hook(number: int) -> Any:
            index, weight = self._neurons[number]

            def read(module: Any, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
                found = contribution(given[0][:, -1], output[:, -1], index, weight)
                if number == first:
                    steps.append(found)
                else:
                    steps[-1] = steps[-1] + found

            return read

        handles = [layers[number].mlp.down_proj.register_forward_hook(hook(number)) for number in self._neurons]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class HProbes(_Transformers):
    """hprobes 0.11 (PyPI): a pass of its own over prompt and answer reads every neuron."""

    name = "transformers, then hprobes"

    def __init__(self, model: Any, tokenizer: Any, bundle: Bundle, max_tokens: int) -> None:
        super().__init__(model, tokenizer, max_tokens)
        from hprobes.cett import available_layers, precompute_col_norms  # type: ignore[import-not-found]

        self._layers = available_layers(model)
        self._norms = precompute_col_norms(model, self._layers)
        self._weight = np.zeros(len(self._layers) * bundle.card.model.neurons_per_layer)
        self._weight[flat(bundle)] = bundle.coefficient

    def _told(self, prompts: Sequence[list[int]]) -> list[tuple[str, int, float]]:
        from hprobes.cett import forward_cett_span

        found = []
        for prompt, (text, count) in zip(prompts, self._generated(prompts), strict=True):
            tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[*prompt, *tokens]])
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            span = forward_cett_span(self._model, given, len(prompt) - 1, ids.shape[1], self._layers, self._norms)
            found.append((text, count, float(np.asarray(span, np.float64).reshape(-1) @ self._weight)))
        return found


def by_layer(bundle: Bundle) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """For each layer with neurons: their indices int64 [k], and their folded weights float32 [k]."""
    found = {}
    for layer in sorted(set(bundle.layer.tolist())):
        own: NDArray[np.bool_] = bundle.layer == layer
        found[layer] = torch.from_numpy(bundle.neuron[own].astype(np.int64)), torch.from_numpy(bundle.folded[own])
    return found


def contribution(z: torch.Tensor, h: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """sum_k weight_k |z_k| / ||h|| of each row, float32 [rows]: ``guard.probe.cett``."""
    return (z[:, index].float().abs() * weight).sum(1) / (h.float().norm(dim=1) + EPSILON)
