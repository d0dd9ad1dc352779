"""``hguard eval``, engine by engine: the guarded one, one for each draw of random neurons, and one that collects.

Each leaves its answers in a workspace of its own; what is there is not done again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from guard.evaluation import baseline_data, baselines, figures, random_baseline
from guard.evaluation.figures import EvaluatedAnswer
from guard.harness.engines import Engines
from guard.harness.progress import tell
from guard.harness.store import StageStore
from guard.judge.question import Question
from guard.judge.rules import RemoteJudge
from guard.probe.bundle import Bundle

PLAIN = 1.0  # the strength that leaves neurons as they are


class Evaluation:
    """One evaluation of a probe; ``work`` opens the workspace of a name."""

    def __init__(
        self,
        engines: Engines,
        bundle: Bundle,
        questions: Sequence[Question],
        judge: RemoteJudge | None,
        max_tokens: int,
        work: Callable[[str], StageStore],
        say: Callable[[str], None] = tell,
    ) -> None:
        self._engines, self._bundle, self._questions = engines, bundle, questions
        self._judge, self._max_tokens, self._work, self._say = judge, max_tokens, work, say
        self.answers: list[EvaluatedAnswer] = []  # to the questions, in their order, once it has run

    async def run(self, strengths: Sequence[float], random_draws: int, with_baselines: bool) -> dict[str, Any]:
        """Everything, as JSON. Raises FitError when scaling is asked for and there is nothing to scale."""
        draws = random_draws if strengths else 0
        random = [
            random_baseline.random_bundle(self._bundle, self._work(f"random-{n}").path("probe"), n)
            for n in range(draws)
        ]
        by_strength = await self._answers(self._bundle, "scale", [PLAIN, *strengths])
        answers = self.answers = by_strength[PLAIN]
        at_random = []
        for n, bundle in enumerate(random):
            # At strength 1 nothing is scaled, whichever neurons they are.
            other = await self._answers(bundle, f"random-{n}", [alpha for alpha in strengths if alpha != PLAIN])
            at_random.append({PLAIN: answers, **other})
        if with_baselines and not len(self._bundle.neuron):
            self._say("no baselines: they are other neurons, and this probe reads none")
            with_baselines = False
        made = await self._baselines(answers) if with_baselines else None
        result = figures.report(self._bundle, self._bundle.readout, self._questions, answers, baselines=made)
        if strengths:
            result["scale"] = self._rows(strengths, by_strength)
            result["scale_random"] = [self._rows(strengths, one) for one in at_random]
        return result

    async def _answers(
        self, bundle: Bundle, name: str, strengths: Sequence[float]
    ) -> dict[float, list[EvaluatedAnswer]]:
        works = {alpha: self._work(f"{name}-{alpha:g}") for alpha in strengths}
        return await figures.answered(
            self._engines, bundle, self._questions, self._judge, works, self._max_tokens, self._say
        )

    def _rows(self, strengths: Sequence[float], answers: dict[float, list[EvaluatedAnswer]]) -> list[dict[str, Any]]:
        return [figures.scaled(alpha, self._questions, answers[alpha]) for alpha in strengths]

    async def _baselines(self, answers: Sequence[EvaluatedAnswer]) -> baselines.Baselines | None:
        greedy = [
            baseline_data.Greedy(i, list(answers[i].tokens), answers[i].text, answers[i].right is False)
            for i in figures.scored(answers)
        ]
        if not greedy:
            return None
        gathered, lengths = await baseline_data.gather(
            self._engines,
            self._work("baselines"),
            self._bundle,
            self._questions,
            greedy,
            self._max_tokens,
            self._say,
        )
        self._say(f"fitting baselines on {len(greedy)} answers")
        made = baselines.baselines(gathered)
        greedy_lengths = [len(answer.tokens) for answer in answers]
        made.facts["consistency"] = baselines.cost(lengths, greedy_lengths, baseline_data.TEMPERATURE)
        return made
