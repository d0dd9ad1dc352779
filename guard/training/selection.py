"""Settle on a C, one engine for each candidate, and measure with what it gives.

arXiv 2512.01797, section 6.1.3: the best sum of detection and of the model's accuracy without the neurons.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from guard import precision
from guard.errors import FitError
from guard.harness.answers import judge_all
from guard.harness.engines import Engines
from guard.harness.generation import score_answers
from guard.harness.progress import Progress
from guard.harness.questions import prompt_of
from guard.harness.store import StageStore
from guard.judge.rules import RemoteJudge
from guard.launch.engines import self_test_prompt
from guard.launch.self_test import make_reference
from guard.probe.bundle import Bundle
from guard.probe.reference import Reference
from guard.probe.signals import SignalFault, TokenSignals
from guard.training.examples import DataSplit
from guard.training.neurons import NeuronSelection

MEASURED, SUPPRESSED, REFERENCE = "measured-{C:g}.jsonl", "suppressed.json", "reference-{C:g}.json"
_AT_ONCE = 64  # fewer than an engine has score slots


class Selection:
    """``ablation_questions``: how many of the questions that the neurons were found on are asked again without them."""

    def __init__(
        self,
        work: StageStore,
        data: DataSplit,
        judge: RemoteJudge | None,
        max_tokens: int,
        ablation_questions: int,
        say: Callable[[str], None],
    ) -> None:
        self._work, self._data, self._judge, self._max_tokens, self._say = (
            work,
            data,
            judge,
            max_tokens,
            say,
        )
        self._asked = [data.examples[row].question for row in data.parts["train"]][:ablation_questions]

    async def run(
        self,
        engines: Engines,
        candidates: Sequence[NeuronSelection],
        bundles: Mapping[float, Bundle],
        rows: Sequence[int],
    ) -> tuple[NeuronSelection, dict[int, TokenSignals]]:
        """The candidate, and what its taps say of the answers in ``rows``. ``bundles``: by C, to measure with."""
        best = candidates[0]
        if len(candidates) > 1:
            right: dict[str, int] = self._work.read_json(SUPPRESSED) if self._work.has(SUPPRESSED) else {}
            for one in candidates:
                if f"{one.C:g}" not in right:
                    async with engines.guarded(bundles[one.C]) as engine:
                        await self._refer(engine, one.C)
                        right[f"{one.C:g}"] = await self._right_without(engine)
                        self._work.write_json(SUPPRESSED, right)
            best = self._best(candidates, right)
        name = MEASURED.format(C=best.C)
        known = {row["row"]: TokenSignals.from_dict(row) for row in self._work.rows(name)}
        open_ = [row for row in rows if row not in known]
        if open_ or not self._work.has(REFERENCE.format(C=best.C)):
            async with engines.guarded(bundles[best.C]) as engine:
                await self._refer(engine, best.C)
                known |= await self._measure(engine, name, open_)
        return best, {row: known[row] for row in rows}

    def reference(self, found: NeuronSelection) -> Reference:
        """What the engine with the candidate's taps was seen to do; for the one that ``run`` gave."""
        return Reference.model_validate(self._work.read_json(REFERENCE.format(C=found.C)))

    async def _refer(self, engine: Any, C: float) -> None:  # noqa: N803 - its name in the literature
        name = REFERENCE.format(C=C)
        if not self._work.has(name):
            made = await make_reference(engine, self_test_prompt(engine))
            self._work.write_json(name, made.model_dump(mode="json"))

    def _best(self, candidates: Sequence[NeuronSelection], right: dict[str, int]) -> NeuronSelection:
        accuracy = {one.C: right[f"{one.C:g}"] / len(self._asked) for one in candidates}
        auroc = {point.C: point.auroc for point in candidates[0].path}
        best = max(candidates, key=lambda one: auroc[one.C] + accuracy[one.C])
        for one in candidates:
            self._say(
                f"C={one.C:g}: AUROC {auroc[one.C]:.3f}, {accuracy[one.C]:.1%} of {len(self._asked)} questions right "
                f"with its neurons off{' (chosen)' if one is best else ''}"
            )
        return best

    async def _right_without(self, engine: Any) -> int:
        """How many questions are answered right when the H-neurons are switched off."""
        tokenizer, questions = engine.get_tokenizer(), self._data.questions

        gate = asyncio.Semaphore(_AT_ONCE)
        progress = Progress(self._say, "answered without its neurons", len(self._asked), "questions")

        async def one(i: int) -> str:
            async with gate:
                prompt = prompt_of(tokenizer, questions[i].text)
                verdict = await engine.answer(prompt, self._max_tokens, f"hguard-off-{i}", 0.0)
            progress.add()
            return str(tokenizer.decode(verdict.token_ids, skip_special_tokens=True))

        texts = await asyncio.gather(*(one(i) for i in self._asked))
        said = {i: [text] for i, text in zip(self._asked, texts, strict=True)}
        verdicts = await judge_all(self._work, questions, said, self._judge)
        return sum(verdict is True for (verdict,) in verdicts.values())

    async def _measure(self, engine: Any, name: str, rows: Sequence[int]) -> dict[int, TokenSignals]:
        """What the taps say of these answers; each is kept as it comes. Raises FitError for what is not finite."""
        found = {}
        progress = Progress(self._say, "measured", len(rows), "answers")
        with self._work.appending(name) as append:
            for start in range(0, len(rows), _AT_ONCE):
                part = rows[start : start + _AT_ONCE]
                signals = await score_answers(engine, [self._data.examples[row] for row in part])
                flawed = 0
                for row, one in zip(part, signals, strict=True):
                    if one.fault() is SignalFault.NOT_FINITE:
                        flawed += 1
                        continue
                    found[row] = one
                    append({"row": row, **one.to_dict()})
                if flawed:
                    dtype = precision.name_of(engine.model_config.dtype)
                    raise FitError(
                        f"what the taps read of {flawed} of {len(part)} answers is not finite in {dtype}: "
                        f"{precision.overflow(dtype)}; what was done before is kept"
                    )
                progress.add(len(part))
        return found
