"""Early ends, second tries and thinking on a real engine: what depends on the model and on the engine's steps."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams

from app.settings import ATLAS
from guard.engine.context import RequestContext, Verdict, use_context
from guard.engine.watch import StepWatch
from guard.ipc.score_table import Slot
from guard.policy import Action, Hold, Mode, Policy
from guard.probe.bundle import Bundle, save_bundle
from guard.probe.signals import Source
from models.atlas.recipe.questions import load_ledger
from tests.engine.harness import Harness, guarded

PLUGIN = Path(__file__).with_name("thinking_plugin.py")
WINDOW = 3
LONG = 90  # tokens
NEVER, ALWAYS = Policy(Mode.ABSTAIN, 1.1), 0.0  # thresholds that no risk reaches, and that every one does


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, atlas_bundle: Bundle) -> Bundle:
    """atlas's probe with windows of three tokens: its answers have several."""
    readout = atlas_bundle.card.readout.model_copy(update={"window": WINDOW})
    card = atlas_bundle.card.model_copy(update={"readout": readout})
    return save_bundle(tmp_path_factory.mktemp("narrow"), card, atlas_bundle.tensors)


@pytest.fixture(scope="module")
def engine(narrow: Bundle) -> Iterator[Harness]:
    harness = guarded(ATLAS, narrow, [f"--reasoning-parser-plugin={PLUGIN}", "--reasoning-parser=up-to-in"])
    yield harness
    harness.close()


def furthest(harness: Harness, slot: Slot) -> int:
    """The last position that the worker has written for this claim."""
    table = harness.engine.table
    return int(np.flatnonzero(table.entries[Source.DRAW][slot.index]["generation"] == slot.generation).max())


def run(harness: Harness, prompt: list[int], policy: Policy, kind: RequestOutputKind, n: int = 1) -> Any:
    """(token ids that left, by sequence; verdicts) of long answers."""

    async def go() -> Any:
        params = SamplingParams(n=n, max_tokens=LONG, temperature=1.0, seed=5, ignore_eos=True, output_kind=kind)
        left: dict[int, list[int]] = {i: [] for i in range(n)}
        with use_context(RequestContext(policy)) as call:
            request = {"type": "token", "prompt_token_ids": prompt}
            async for output in harness.engine.generate(request, params, f"hold-{id(call)}"):
                for completion in output.outputs:
                    left[completion.index] += completion.token_ids
        return left, call.verdicts

    return harness.run(go())


@pytest.mark.parametrize("kind", [RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY])
def test_the_engine_stops_within_two_steps_of_the_decision(
    engine: Harness, prompts: list[list[int]], kind: RequestOutputKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided: list[tuple[Slot, int]] = []
    look = StepWatch.look

    def watched(self: StepWatch, followed: Any) -> None:
        look(self, followed)
        ended = (answer.slot for _, answer in followed if answer.midway is not None)
        decided.extend((slot, furthest(engine, slot)) for slot in ended if slot is not None)

    monkeypatch.setattr(StepWatch, "look", watched)
    for prompt in prompts[:4]:
        left, verdicts = run(engine, prompt, Policy(Mode.ABSTAIN, ALWAYS), kind, n=2)
        assert [verdicts[i].decision.action for i in range(2)] == [Action.ABSTAINED] * 2
        assert all(len(tokens) < LONG // 2 for tokens in left.values())
    assert len(decided) == 8
    engine.run(asyncio.sleep(0.5))
    # Where this process waits for a core, the worker's goes on: most of them say what it is.
    assert statistics.median(furthest(engine, slot) - at for slot, at in decided) <= 2
    assert max(furthest(engine, slot) - at for slot, at in decided) < LONG // 2
    assert engine.engine.pool.in_use == 0


def test_what_left_before_an_abstention_lies_in_no_window_that_was_risky(
    engine: Harness, prompts: list[list[int]]
) -> None:
    watch = Policy(Mode.FLAG, 0.5)
    seen = exact = 0
    for prompt in prompts[:8]:
        plain, told = run(engine, prompt, watch, RequestOutputKind.DELTA)
        risks = windows_of(engine, told[0])
        # A threshold that some window reaches, and the one before does not.
        rises = [i for i in range(4, len(risks)) if risks[i] > max(risks[:i])]
        if not rises:
            continue
        seen += 1
        threshold = (risks[rises[0]] + max(risks[: rises[0]])) / 2
        policy = Policy(Mode.ABSTAIN, threshold, hold=Hold.WINDOW)
        left, verdicts = run(engine, prompt, policy, RequestOutputKind.DELTA)
        verdict = verdicts[0]
        thinking = len(plain[0]) - len(told[0].token_ids)
        assert verdict.decision.action is Action.ABSTAINED
        # Where this process waits for a core, several windows are looked at together, and the worst of them is told.
        assert verdict.peak.start >= rises[0]
        assert risks[verdict.peak.start] >= threshold
        # Thoughts wait for the whole answer, and it stands behind them.
        assert verdict.sent_tokens <= (0 if thinking else rises[0])
        exact += verdict.sent_tokens == (0 if thinking else rises[0])
        assert left[0][: verdict.sent_tokens] == plain[0][: verdict.sent_tokens]
    assert seen >= 3
    assert exact >= 2


def windows_of(harness: Harness, verdict: Verdict) -> list[float]:
    readout, signals = harness.engine.readout, verdict.signals
    assert signals is not None
    return [readout.risk(signals.part(i, i + WINDOW), i)[0] for i in range(len(signals) - WINDOW)]


def test_thinking_is_not_part_of_the_risk(engine: Harness, reader: Any, prompts: list[list[int]]) -> None:
    """The verdict on the answer after the thinking is that of the same text, given with its thinking as prompt."""
    end = reader.tokenizer.encode(" in")[-1]
    places = [fact["subject"] for fact in load_ledger(ATLAS)["facts"] if fact["relation"] == "place_country"][:8]
    asked = [[{"role": "user", "content": f"Where is {place}?"}] for place in places]
    questions = [
        list(reader.tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=False)) for one in asked
    ]
    prompts = [*questions, *(prompt for prompt in prompts if end in prompt)][:12]
    produced = engine.produce(prompts, 24, [Policy(Mode.FLAG, 0.5)] * 12, ignore_eos=False)
    compared = 0
    for prompt, one in zip(prompts, produced, strict=False):
        ended = end in prompt  # as where a template closes the thinking: the answer begins at once
        if not ended and end not in one.tokens:
            assert one.verdict is not None
            assert one.verdict.reason == "unfinished_thinking"
            continue
        thinking = [] if ended else one.tokens[: one.tokens.index(end) + 1]
        assert one.verdict is not None
        answer = one.verdict.token_ids
        assert thinking + answer == one.tokens[: len(thinking) + len(answer)]
        again = engine.run(
            engine.engine.score([*prompt, *thinking], answer, Policy(Mode.FLAG, 0.5), f"again-{compared}")
        )
        assert one.verdict.risk == pytest.approx(again.risk, rel=1e-3)
        assert one.verdict.prompt_risk == pytest.approx(again.prompt_risk, rel=1e-3)
        compared += not ended
    assert compared >= 6


def test_a_second_try_is_the_scaled_answer(engine: Harness, prompts: list[list[int]]) -> None:
    count = 3
    plain = engine.produce(prompts[:count], 24, [Policy(Mode.FLAG, 0.5)] * count, ignore_eos=False)
    scaled = engine.produce(prompts[:count], 24, [Policy(Mode.FLAG, 0.5, scale=0.0)] * count, ignore_eos=False)
    policy = Policy(Mode.ABSTAIN, 1.0, retry_scale=0.0)
    scored = [i for i in range(count) if plain[i].verdict.risk is not None and scaled[i].verdict.risk is not None]
    assert scored
    for i in scored:
        first, second = plain[i].verdict.risk, scaled[i].verdict.risk
        low = Policy(Mode.ABSTAIN, min(first, second) / 2, retry_scale=0.0)
        (again,) = engine.produce([prompts[i]], 24, [low], ignore_eos=False)
        assert again.verdict.decision.action is Action.ABSTAINED
        assert again.verdict.first_risk is not None
        (once,) = engine.produce([prompts[i]], 24, [policy], ignore_eos=False)
        assert once.verdict.first_risk is None
        assert once.tokens == plain[i].tokens
        if second < first:
            between = Policy(Mode.ABSTAIN, (first + second) / 2, retry_scale=0.0)
            (other,) = engine.produce([prompts[i]], 24, [between], ignore_eos=False)
            assert other.verdict.decision.action is Action.PASS
            assert other.tokens == scaled[i].tokens
            assert other.verdict.risk == pytest.approx(second, rel=1e-3)
