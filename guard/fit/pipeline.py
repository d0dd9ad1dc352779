"""Fit a probe bundle, stage by stage: sample, judge, choose, collect, train, measure, calibrate.

Each stage leaves its file in the workspace; what is there is not done again. Two engines run, one after the other: the
first samples and collects, the second serves the new probe and measures with it what calibration needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from guard.engine.collecting import CollectingEngine, Span, new_means
from guard.errors import FitError
from guard.fit import calibrate, evaluate
from guard.fit.answers import Chosen, consistent, judge_all, representative
from guard.fit.judge import RemoteJudge
from guard.fit.questions import Question, split
from guard.fit.span import find_span, token_offsets, tokens_of
from guard.fit.train import BOOTSTRAPS, Found, find_neurons
from guard.fit.workspace import Workspace, explained
from guard.probe import cett, conformal
from guard.probe.bundle import Bundle, save_bundle
from guard.probe.card import ModelIdentity, ProbeCard, ReadoutParameters, StackParameters, Training
from guard.probe.readout import Readout, Signals, Stack

SHARES = {"train": 0.5, "calibration": 0.2, "test": 0.3}
TARGETS = (0.01, 0.05, 0.10)
SAMPLES, CHOSEN, MEANS, COLLECTED, FOUND, MEASURED = (
    "samples.jsonl",
    "chosen.jsonl",
    "means.npy",
    "collected.json",
    "found.json",
    "measured.jsonl",
)

Locate = Callable[[str], tuple[int, int]]  # character range of an answer that states the fact
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """id: of the bundle. samples: answers to each question, at this temperature (1 sample is greedy). longest: tokens.

    agree: share of a question's answers that must be judged alike. cap: largest share of all neurons that may be kept.
    slots: answers that are collected at once. Answers that cannot be consistent teach nothing and are left out.
    """

    id: str
    seed: int = 0
    samples: int = 10
    temperature: float = 1.0
    longest: int = 64
    agree: float = 1.0
    cap: float = 0.04
    refit: bool = False
    slots: int = 32


class Engines(Protocol):
    """Starts the two engines that a fit needs."""

    def collecting(self) -> AbstractAsyncContextManager[CollectingEngine]: ...

    def guarded(self, bundle: Bundle) -> AbstractAsyncContextManager[Any]: ...


class Fit:
    """One fit: ``norms`` float32 [layers, neurons], column norms from the checkpoint."""

    def __init__(
        self,
        work: Workspace,
        questions: Sequence[Question],
        identity: ModelIdentity,
        norms: NDArray[np.float32],
        options: Options,
        judge: RemoteJudge | None = None,
        locate: Locate = find_span,
        say: Say = print,
    ) -> None:
        self._work, self._questions, self._identity, self._norms = work, questions, identity, norms
        self._options, self._judge, self._locate, self._say = options, judge, locate, say

    async def run(self, engines: Engines, out: Path) -> Bundle:
        """All stages that are not done yet. Raises FitError when the answers cannot teach anything."""
        chosen = self._chosen()
        if chosen is None or not self._collected(len(chosen)):
            async with engines.collecting() as engine:
                if chosen is None:
                    chosen = await self._choose(engine)
                await self._collect(engine, chosen)
        parts = split([self._questions[one.question] for one in chosen], SHARES, self._options.seed)
        self._say(", ".join(f"{len(index)} answers for {name}" for name, index in parts.items()))
        found = self._find(chosen, parts["train"])
        flat = np.zeros(99, np.float32)
        rough = self._bundle(self._work.path("rough"), chosen, parts, found, unit_readout(), flat, {})
        signals = await self._measure(engines, rough, chosen, [*parts["calibration"], *parts["test"]])
        return self._calibrate(out, chosen, parts, found, signals)

    # -- the first engine ----------------------------------------------------------------------------------------------

    def _chosen(self) -> list[Chosen] | None:
        return [Chosen(**row) for row in self._work.rows(CHOSEN)] if self._work.has("chosen.done") else None

    async def _choose(self, engine: CollectingEngine) -> list[Chosen]:
        options, tokenizer = self._options, engine.tokenizer
        prompts = [prompt_of(tokenizer, question.text) for question in self._questions]
        done = {row["question"]: row["answers"] for row in self._work.rows(SAMPLES)}
        open_ = [i for i in range(len(prompts)) if i not in done]
        greedy = options.samples == 1
        with self._work.growing(SAMPLES) as append:
            stream = engine.sample(
                [prompts[i] for i in open_],
                options.samples,
                options.longest,
                0.0 if greedy else options.temperature,
                options.seed,
            )
            async for index, answers in stream:
                i = open_[index]
                done[i] = [{"tokens": a.tokens, "text": a.text, "ended": a.ended} for a in answers]
                append({"question": i, "answers": done[i]})
                if len(done) % max(1, len(prompts) // 10) == 0:
                    self._say(f"sampled {len(done)} of {len(prompts)} questions")
        texts = {i: [answer["text"] for answer in answers] for i, answers in sorted(done.items())}
        verdicts = await judge_all(self._work, self._questions, texts, self._judge)
        chosen = []
        for i, said in texts.items():
            right = consistent(verdicts[i], options.agree)
            if right is None:
                continue
            answer = done[i][representative(said, verdicts[i], right)]
            if not answer["tokens"] or not answer["text"].strip():
                continue
            # The engine's text may leave out blanks that the tokens spell.
            whole = tokenizer.decode(answer["tokens"], skip_special_tokens=True)
            start, end = tokens_of(token_offsets(tokenizer, answer["tokens"]), self._locate(whole))
            chosen.append(Chosen(i, prompts[i], answer["tokens"], whole, start, end, not right))
        wrong = sum(one.wrong for one in chosen)
        self._say(f"{len(chosen)} of {len(prompts)} questions are answered consistently, {wrong} of them wrong")
        if not 0 < wrong < len(chosen):
            raise FitError(
                f"the consistent answers are all {'wrong' if wrong else 'right'} ({len(chosen)} of {len(prompts)} "
                "questions): there is nothing to tell apart; ask what the model knows in part, or lower --agree"
            )
        self._work.path(CHOSEN).unlink(missing_ok=True)
        with self._work.growing(CHOSEN) as append:
            for one in chosen:
                append(one.row())
        self._work.write_json("chosen.done", len(chosen))
        return chosen

    def _collected(self, count: int) -> bool:
        return self._work.has(COLLECTED) and int(self._work.read_json(COLLECTED)) >= count

    async def _collect(self, engine: CollectingEngine, chosen: Sequence[Chosen]) -> None:
        """Mean |z| / ||h|| over each answer's span, in waves; the count of finished rows is written after each."""
        layers, neurons = self._norms.shape
        path = self._work.path(MEANS)
        done = int(self._work.read_json(COLLECTED)) if self._work.has(COLLECTED) else 0
        if not done:
            with explained(self._work.folder):
                new_means(path, len(chosen), layers, neurons)
        for start in range(done, len(chosen), self._options.slots):
            wave = chosen[start : start + self._options.slots]
            spans = [
                Span([*one.prompt, *one.tokens], len(one.prompt) + one.start, len(one.prompt) + one.end) for one in wave
            ]
            with explained(self._work.folder):
                await engine.collect(spans, range(start, start + len(wave)), path)
            self._work.write_json(COLLECTED, start + len(wave))
            if start // self._options.slots % 20 == 0:
                self._say(f"collected {start + len(wave)} of {len(chosen)} answers")

    # -- without an engine ---------------------------------------------------------------------------------------------

    def features(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Mean CETT of every neuron: float32 [rows, layers * neurons]."""
        means: NDArray[np.float32] = np.load(self._work.path(MEANS), mmap_mode="r")
        taken = means[np.asarray(rows, int)]
        taken *= self._norms
        return taken.reshape(len(rows), -1)

    def _find(self, chosen: Sequence[Chosen], train: Sequence[int]) -> Found:
        if self._work.has(FOUND):
            return evaluate.found_from(self._work.read_json(FOUND))
        options = self._options
        wrong = np.array([chosen[i].wrong for i in train])
        entities = [self._questions[chosen[i].question].entity for i in train]
        try:
            found = find_neurons(
                self.features(train),
                wrong,
                entities,
                options.cap,
                options.seed,
                options.refit,
                BOOTSTRAPS,
                self._say,
            )
        except ValueError as error:
            raise FitError(str(error)) from None
        positive = int((found.coefficient > 0).sum())
        self._say(f"C={found.C:g}: {len(found.index)} neurons, {positive} positive, of {self._norms.size}")
        self._work.write_json(FOUND, evaluate.found_to(found))
        return found

    # -- the second engine ---------------------------------------------------------------------------------------------

    async def _measure(
        self, engines: Engines, bundle: Bundle, chosen: Sequence[Chosen], rows: Sequence[int]
    ) -> dict[int, Signals]:
        """What the taps say of calibration and test answers."""
        known = {row["row"]: evaluate.signals_from(row) for row in self._work.rows(MEASURED)}
        open_ = [i for i in rows if i not in known]
        if open_:
            async with engines.guarded(bundle) as engine:
                with self._work.growing(MEASURED) as append:
                    for start in range(0, len(open_), 64):
                        part = open_[start : start + 64]
                        for i, one in zip(part, await evaluate.measure(engine, [chosen[i] for i in part]), strict=True):
                            known[i] = one
                            append({"row": i, **evaluate.signals_to(one)})
        return {i: known[i] for i in rows}

    def _calibrate(
        self,
        out: Path,
        chosen: Sequence[Chosen],
        parts: dict[str, list[int]],
        found: Found,
        signals: dict[int, Signals],
    ) -> Bundle:
        calibration, test = parts["calibration"], parts["test"]
        wrong = np.array([chosen[i].wrong for i in calibration])
        if wrong.all() or not wrong.any():
            raise FitError("the calibration answers are all right or all wrong: ask more questions")
        longest = max(1, int(np.ceil(np.quantile([len(chosen[i].tokens) for i in parts["train"]], 0.9))))
        readout = calibrate.fit_readout(
            [signals[i] for i in calibration], wrong, [(chosen[i].start, chosen[i].end) for i in calibration], longest
        )
        right = [readout.risk(signals[i])[0] for i in calibration if not chosen[i].wrong]
        right_risks = np.sort(np.array(right, np.float32))
        reports = evaluate.reports(
            [self._questions[chosen[i].question] for i in test],
            np.array([chosen[i].wrong for i in test]),
            [signals[i] for i in test],
            readout,
            evaluate.Baseline(
                self.features(test),
                self.features(parts["train"]),
                np.array([chosen[i].wrong for i in parts["train"]]),
                len(found.index),
            ),
            self._options.seed,
        )
        return self._bundle(out, chosen, parts, found, readout, right_risks, reports)

    def _bundle(
        self,
        out: Path,
        chosen: Sequence[Chosen],
        parts: dict[str, list[int]],
        found: Found,
        readout: Readout,
        right_risks: NDArray[np.float32],
        reports: dict[str, Any],
    ) -> Bundle:
        width = self._norms.shape[1]
        layer, neuron = (found.index // width).astype(np.int32), (found.index % width).astype(np.int32)
        card = ProbeCard(
            schema_version=1,
            id=self._options.id,
            model=self._identity,
            training=Training(
                method="l1-logistic-regression",
                labels="1-vs-1",
                C=found.C,
                seed=self._options.seed,
                span="answer-tokens-and-last-prompt-token",
                answers={name: len(index) for name, index in parts.items()},
            ),
            intercept=found.intercept,
            readout=ReadoutParameters(
                window=readout.window,
                answer=parameters_of(readout.answer),
                platt=readout.platt,
                token=parameters_of(readout.token),
            ),
            thresholds=conformal.thresholds(right_risks, TARGETS),
            metrics=reports,
            tensors_sha256="0" * 64,
        )
        tensors: dict[str, NDArray[np.generic]] = {
            "layer": layer,
            "neuron": neuron,
            "coefficient": found.coefficient,
            "folded": cett.fold(found.coefficient, self._norms[layer, neuron]),
            "right_risks": right_risks,
        }
        with explained(out):
            return save_bundle(out, card, tensors)


def prompt_of(tokenizer: Any, question: str) -> list[int]:
    """Token ids of a chat with this one message, up to where the assistant starts."""
    message = [{"role": "user", "content": question}]
    return list(tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False))


def parameters_of(stack: Stack) -> StackParameters:
    return StackParameters(mean=stack.mean, scale=stack.scale, weight=stack.weight, bias=stack.bias)


def unit_readout() -> Readout:
    """A readout that uses everything, so that everything is measured; what it says is not used."""
    stack = Stack((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), 0.0)
    return Readout(1, stack, (1.0, 0.0), stack)
