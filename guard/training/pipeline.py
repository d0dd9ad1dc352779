"""Fit a probe bundle, stage by stage: answer, judge, choose, train neurons, heads, settle on a C, measure, calibrate.

Each stage leaves its file in the workspace; what is there is not done again. Engines run one after the other: the first
answers and collects in one pass, each further one serves a candidate and measures with it what calibration needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from guard.engine.activations import CollectingEngine
from guard.errors import FitError
from guard.evaluation import detectors
from guard.harness.activations import FACTS, LEADS, MEANS, collect, collected, facts_of, file_of
from guard.harness.answers import Example
from guard.harness.engines import Engines
from guard.harness.features import Features, Floats
from guard.harness.progress import tell
from guard.harness.questions import SHARES as ALL_SHARES
from guard.harness.store import StageStore, translate_os_errors
from guard.ipc.collecting import Part, Site, site_of
from guard.judge.question import Question
from guard.judge.rules import RemoteJudge
from guard.judge.spans import find_span
from guard.launch.interrupts import at_once
from guard.probe import cett
from guard.probe.bundle import Bundle, save_bundle
from guard.probe.card import (
    SCHEMA_VERSION,
    ModelIdentity,
    ProbeCard,
    ReadoutParameters,
    SetMetrics,
    Span,
    ThresholdMetrics,
    Training,
    TrainingMethod,
)
from guard.probe.heads import Head, head_from, tensors_of
from guard.probe.readout import unit_readout
from guard.probe.reference import Reference
from guard.probe.signals import DISTANCE, NEURONS, OF_STATES, Source, TokenSignals, names
from guard.training import calibration
from guard.training.config import FitConfig
from guard.training.distance import find_distance
from guard.training.examples import DataSplit, Locate, choose, chosen_in, require_questions
from guard.training.heads import find_head
from guard.training.neurons import CANDIDATES, RIDGE, NeuronSelection, find_neurons, given_neurons
from guard.training.selection import Selection

# Thresholds come from answers of their own: what the readout was fit on looks better than it is.
SHARES = ALL_SHARES["fit"]
FOUND, FOUND_HEADS = "found.json", "heads.json"
TOKEN_ANSWERS = 500  # calibration answers whose single tokens are measured
SPANS: dict[Literal["fact", "answer"], Span] = {
    "answer": "answer-tokens-and-last-prompt-token",
    "fact": "fact-tokens-and-the-one-before",
}

Say = Callable[[str], None]


def detailed(data: DataSplit, window: int) -> list[int]:
    """The rows to measure token by token: answers of several windows, and some that the token head learns from.

    Of the others the mean over all tokens is all that a readout asks for, and that was collected with the answer.
    """
    long = [r for part in calibration.PARTS for r in data.parts[part] if len(data.examples[r].tokens) > window]
    return sorted({*long, *data.parts["calibration"][:TOKEN_ANSWERS]})


def whole(answer: Example, means: Mapping[str, float], last_prompt: Mapping[str, float]) -> TokenSignals:
    """Signals of an answer that is one window, from those of the forward pass, by name: the means over its last prompt
    token and its tokens, and of that token alone.

    Its tokens' own are not known one by one: each has their mean. The last of a cut answer was never fed back.
    """
    n = len(answer.tokens)
    fed = n - (not answer.ended)
    values = {name: np.array(drawn, np.float32) for name, drawn in answer.draws.items()}
    for name, mean in means.items():
        values[name] = np.full(n, ((fed + 1) * mean - last_prompt[name]) / fed if fed else np.nan, np.float32)
        values[name][fed:] = np.nan
    return TokenSignals(dict(last_prompt), values)


class Fit:
    """One fit: ``norms`` float32 [layers, neurons], column norms from the checkpoint; ``bundle_id`` names the bundle.

    neurons: flat indices of those to fit with L2, in place of finding any; none at all for heads alone.
    """

    def __init__(
        self,
        work: StageStore,
        questions: Sequence[Question],
        identity: ModelIdentity,
        norms: NDArray[np.float32],
        config: FitConfig,
        bundle_id: str,
        neurons: tuple[int, ...] | None = None,
        judge: RemoteJudge | None = None,
        locate: Locate = find_span,
        say: Say = tell,
    ) -> None:
        self._work, self._questions, self._identity, self._norms = work, questions, identity, norms
        self._config, self._id, self._neurons = config, bundle_id, neurons
        self._judge, self._locate, self._say = judge, locate, say
        self._heads: dict[str, Head] = {}
        self._reads_neurons = neurons is None or len(neurons) > 0
        self._ablation_questions = config.ablation_questions if neurons is None else 0  # one candidate needs no choice

    async def run(self, engines: Engines, out: Path) -> Bundle:
        """All stages that are not done yet. Raises FitError when the answers cannot teach anything."""
        require_questions(len(self._questions), SHARES["thresholds"], self._say)
        chosen = chosen_in(self._work)
        if chosen is None or not self._collected(chosen):
            async with engines.collecting() as engine:
                chosen = await self._choose_and_collect(engine, chosen)
        self._require_measured(chosen)
        data = self._data(chosen)
        self._say(", ".join(f"{len(index)} answers for {name}" for name, index in data.parts.items()))
        with at_once():
            candidates, self._heads = self._find(data), self._find_heads(data)
        rough = {one.C: self._rough(data, one) for one in candidates}
        window = self._window(data)
        settle = Selection(self._work, data, self._judge, self._config.max_tokens, self._ablation_questions, self._say)
        found, measured = await settle.run(engines, candidates, rough, detailed(data, window))
        with at_once():
            return self._calibrate(out, data, found, window, measured, settle.reference(found))

    def _data(self, chosen: Sequence[Example]) -> DataSplit:
        return DataSplit.of(self._questions, chosen, SHARES, self._config.seed)

    def _require_measured(self, chosen: Sequence[Example]) -> None:
        """Raise FitError where answers lack a signal of draws that the probe is to read: it would be left out."""
        wanted = names(Source.DRAW, self._config.measured)
        if missing := [name for name in wanted if any(name not in one.draws for one in chosen)]:
            raise FitError(
                f"the answers in {self._work.folder} were not measured for {', '.join(missing)}: the engine that "
                "answers has to measure what the probe reads"
            )

    def _collected(self, chosen: Sequence[Example]) -> bool:
        return self._config.span == "answer" or collected(self._work, FACTS) >= len(chosen)

    async def _choose_and_collect(self, engine: CollectingEngine, chosen: list[Example] | None) -> list[Example]:
        """What the first engine has to do, so far as it is not done."""
        config, shape = self._config, (self._norms.shape[0], self._norms.shape[1] if self._reads_neurons else 0)
        if chosen is None:
            chosen = await choose(
                self._work, engine, self._questions, config, SHARES, shape, self._judge, self._locate, self._say
            )
        if config.span == "fact":
            await collect(self._work, engine, facts_of(chosen), shape, config.slots, self._say, name=FACTS)
        return chosen

    def _window(self, data: DataSplit) -> int:
        """Tokens of a window: nine in ten training answers are not longer."""
        return max(1, int(np.ceil(np.quantile([len(data.examples[i].tokens) for i in data.parts["train"]], 0.9))))

    def features(self, data: DataSplit, rows: Sequence[int]) -> Features:
        """Mean CETT of every neuron, of these answers."""
        if self._config.span == "fact":
            return Features.of(self._work.path(FACTS), self._norms, rows)
        return self._of_questions(MEANS, data, rows)

    def _of_questions(self, name: str, data: DataSplit, rows: Sequence[int]) -> Features:
        if not self._reads_neurons:
            return Features(np.zeros((len(rows), 1), np.float32))  # of which none is taken
        return Features.of(self._work.path(name), self._norms, [data.examples[row].question for row in rows])

    def _find(self, data: DataSplit) -> list[NeuronSelection]:
        """The candidates, the preferred one first."""
        if self._work.has(FOUND):
            return [NeuronSelection.from_dict(row) for row in self._work.read_json(FOUND)]
        if not self._reads_neurons:
            return [NeuronSelection(np.zeros(0, np.int64), np.zeros(0, np.float32), 0.0, RIDGE)]
        config = self._config
        train = data.parts["train"]
        leads = self._of_questions(LEADS, data, train) if config.prompt_risk else None
        if self._neurons is not None:
            found = [given_neurons(self.features(data, train), data.wrong("train"), np.array(self._neurons), leads)]
            self._work.write_json(FOUND, [one.to_dict() for one in found])
            return found
        try:
            found = find_neurons(
                self.features(data, train),
                data.wrong("train"),
                [data.question(i).entity for i in train],
                config.max_neuron_fraction,
                config.refit,
                self._say,
                CANDIDATES if self._ablation_questions else 1,
                leads,
            )
        except ValueError as error:
            raise FitError(str(error)) from None
        for one in found:
            positive = int((one.coefficient > 0).sum())
            self._say(f"C={one.C:g}: {len(one.index)} neurons, {positive} positive, of {self._norms.size}")
        self._work.write_json(FOUND, [one.to_dict() for one in found])
        return found

    def _find_heads(self, data: DataSplit) -> dict[str, Head]:
        """A head for each signal that is one and is wanted, by name, on the means over the whole answer."""
        wanted = [name for name in OF_STATES if name in self._config.signals]
        known = self._work.read_json(FOUND_HEADS) if self._work.has(FOUND_HEADS) else {}
        for name in wanted:
            if name not in known:
                found = self._find_distance(data) if name == DISTANCE else self._find_head(name, data)
                known[name] = found.to_dict()
                self._work.write_json(FOUND_HEADS, known)
        return {name: head_from(name, known[name]) for name in wanted}

    def _find_head(self, name: str, data: DataSplit) -> Head:
        train = data.parts["train"]

        def states(layers: Sequence[int]) -> Floats:
            return self._states(name, Part.SPAN, data, train, layers)

        entities = [data.question(i).entity for i in train]
        try:
            found = find_head(
                states, len(self._norms), data.wrong("train"), entities, lambda text: self._say(f"{name} of {text}")
            )
        except ValueError as error:
            raise FitError(f"no head on {name} can be fit: {error}") from None
        layers = ", ".join(map(str, found.head.layer))
        self._say(f"{name} of layers {layers}: AUROC {found.auroc:.3f} on held-out folds")
        return found.head

    def _find_distance(self, data: DataSplit) -> Head:
        """Of a middle layer, from the answers that calibrate."""
        layer = len(self._norms) // 2
        states = self._states(DISTANCE, Part.LAST_PROMPT, data, data.parts["calibration"], [layer])
        try:
            return find_distance(states[:, 0], layer, self._config.seed)
        except ValueError as error:
            raise FitError(f"no distance can be fit: {error}; or leave it out of --signals") from None

    def _states(self, name: str, part: Part, data: DataSplit, rows: Sequence[int], layers: Sequence[int]) -> Floats:
        """Mean states of these layers at a head's site, of these answers: float32 [answers, layers, width]."""
        table: NDArray[np.float32] = np.load(self._work.path(file_of((site_of(name), part))), mmap_mode="r")
        questions = np.array([data.examples[row].question for row in rows], np.int64)
        return np.stack([table[questions, layer] for layer in layers], 1)

    def _calibrate(
        self,
        out: Path,
        data: DataSplit,
        found: NeuronSelection,
        window: int,
        measured: dict[int, TokenSignals],
        reference: Reference,
    ) -> Bundle:
        parts, chosen = data.parts, data.examples
        wrong = {name: data.wrong(name) for name in parts}
        signals = {name: self._signals(data, found, parts[name], measured) for name in calibration.PARTS}
        spans = [(chosen[i].start, chosen[i].end) for i in parts["calibration"]]
        by_token = [number for number, row in enumerate(parts["calibration"]) if row in measured]
        made = calibration.calibration(signals, wrong, spans, window, self._config.calibration, by_token)
        random = detectors.Baseline(
            self.features(data, parts["test"]),
            self.features(data, parts["train"]),
            wrong["train"],
            found.index,
            self._norms.shape[1],
        )
        reports = detectors.reports(
            [data.question(i) for i in parts["test"]],
            wrong["test"],
            signals["test"],
            made.readout,
            random if self._reads_neurons else None,
            self._config.seed,
        )
        return self._bundle(
            out, data, found, made.parameters, made.risks, made.thresholds, made.at_thresholds, reports, reference
        )

    def _signals(
        self, data: DataSplit, found: NeuronSelection, rows: Sequence[int], measured: Mapping[int, TokenSignals]
    ) -> list[TokenSignals]:
        """What the probe would have read of these answers: as measured, or from what was collected of them."""
        means, last_prompt = (self._forward(part, data, found, rows) for part in (Part.SPAN, Part.LAST_PROMPT))
        return [
            measured[row] if row in measured else whole(data.examples[row], mean, last)
            for row, mean, last in zip(rows, means, last_prompt, strict=True)
        ]

    def _forward(
        self, part: Part, data: DataSplit, found: NeuronSelection, rows: Sequence[int]
    ) -> list[dict[str, float]]:
        """Of each answer the mean over a part of it of what the probe reads of the forward pass, by name."""
        neurons = self._of_questions(file_of((Site.NEURONS, part)), data, rows).take(found.index)
        scores = {NEURONS: neurons @ found.coefficient} | {
            name: head.score(self._states(name, part, data, rows, head.layer.tolist()))
            for name, head in self._heads.items()
            if name != DISTANCE or part is Part.LAST_PROMPT  # that of a mean is no mean
        }
        return [dict(zip(scores, map(float, values), strict=True)) for values in zip(*scores.values(), strict=True)]

    @property
    def _method(self) -> TrainingMethod:
        if not self._reads_neurons:
            return "heads"
        return "l1-logistic-regression" if self._neurons is None else "imported"

    def _usual(self, data: DataSplit, found: NeuronSelection) -> Floats:
        """What each neuron contributes to a score on average over the answers that calibrate: float32 [k]."""
        means = self._of_questions(MEANS, data, data.parts["calibration"]).take(found.index)
        return (means.mean(0) * found.coefficient).astype(np.float32)

    def _rough(self, data: DataSplit, found: NeuronSelection) -> Bundle:
        """A bundle to measure with: what it says of risk is not used."""
        read = self._config.measured if self._reads_neurons else self._config.measured - {NEURONS}
        parameters, _ = calibration.calibrated(unit_readout(read), [], np.zeros(0, bool))
        folder = self._work.path(f"rough-{found.C:g}")
        return self._bundle(folder, data, found, parameters, {"right_risks": np.zeros(99, np.float32)})

    def _bundle(
        self,
        out: Path,
        data: DataSplit,
        found: NeuronSelection,
        readout: ReadoutParameters,
        risks: dict[str, NDArray[np.float32]],
        thresholds: dict[str, float] | None = None,
        at_thresholds: dict[str, ThresholdMetrics] | None = None,
        reports: dict[str, SetMetrics] | None = None,
        reference: Reference | None = None,
    ) -> Bundle:
        width = self._norms.shape[1]
        layer, neuron = (found.index // width).astype(np.int32), (found.index % width).astype(np.int32)
        card = ProbeCard(
            schema_version=SCHEMA_VERSION,
            id=self._id,
            model=self._identity,
            training=Training(
                method=self._method,
                labels="1-vs-1",
                C=found.C if self._reads_neurons else None,
                seed=self._config.seed,
                span=SPANS[self._config.span],
                answers={name: len(index) for name, index in data.parts.items()},
            ),
            intercept=found.intercept,
            readout=readout,
            thresholds=thresholds or {},
            at_thresholds=at_thresholds,
            metrics=reports or {},
            tensors_sha256="0" * 64,
        )
        tensors: dict[str, NDArray[np.generic]] = {
            "layer": layer,
            "neuron": neuron,
            "coefficient": found.coefficient,
            "folded": cett.fold(found.coefficient, self._norms[layer, neuron]),
            "usual": self._usual(data, found),
            "train_questions": np.sort(np.array([data.question(i).digest for i in data.parts["train"]], np.uint64)),
            **tensors_of(self._heads),
            **risks,
        }
        with translate_os_errors(out):
            return save_bundle(out, card, tensors, reference)
