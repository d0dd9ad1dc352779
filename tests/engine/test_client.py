"""GuardedEngine over a scripted engine: admission, slots and withheld text do not depend on a model."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm.exceptions import GracefulHTTPError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.engine import client
from guard.engine.client import GuardedEngine
from guard.engine.context import RequestContext, Unscored, use_context
from guard.engine.stages import Retry, Stage
from guard.errors import TapError
from guard.ipc import capture
from guard.ipc.score_table import ScoreTable
from guard.policy import Action, Fail, Hold, Mode, Policy
from guard.probe.bundle import Bundle
from guard.probe.signals import ENTROPY, LOGPROB, NEURONS, Source

PROMPT = [5, 6, 7]
WORDS = ["It", " is", " Mars", "."]


class Processor:
    """vLLM's, as far as a watch looks into it."""

    def __init__(self) -> None:
        self.request_states: dict[str, Any] = {}

    def add_request(self, request: Any, prompt: None, parent: None, index: int) -> None:
        self.request_states[request.request_id] = SimpleNamespace(request_index=index, parent_req=None)

    def process_outputs(self, outputs: Any) -> Any:
        return SimpleNamespace(reqs_to_abort=[])

    def abort_requests(self, names: list[str], internal: bool) -> list[str]:
        assert internal
        return [name for name in names if self.request_states.pop(name, None)]


class ScriptedEngine:
    """Plays AsyncLLM and its worker: one token an output, its draw known at once, its activation one step later."""

    def __init__(self) -> None:
        self.table: ScoreTable
        self.admitted: list[int] = []
        self.aborted = 0
        self.drawn = 0  # tokens
        self.ended: list[str] = []
        self.ahead = False  # whether the last token was fed back before the engine noticed that it is the last
        self.reasons: tuple[str, str | int | None] = ("length", None)
        self.score: Callable[[int, int, float], float] = lambda at, sequence, scale: at
        self.output_processor = Processor()

    model_config = SimpleNamespace(skip_tokenizer_init=False, try_get_generation_config=lambda: {"eos_token_id": 1})
    vllm_config = SimpleNamespace(structured_outputs_config=SimpleNamespace(reasoning_parser=""))

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(eos_token_id=1, decode=str)

    def check_admission(self, n: int, request_id: str | None) -> None:
        self.admitted.append(n)

    async def generate(self, prompt: Any, params: SamplingParams, request_id: str, **more: Any) -> AsyncIterator[Any]:
        told = params.extra_args[capture.KEY]  # type: ignore[index]
        slots, self._scale = told["slots"], told["scale"]
        running = [f"{i}_{request_id}-x" for i in range(params.n)]
        for i, name in enumerate(running):
            request = SimpleNamespace(request_id=name, external_req_id=request_id, prompt_token_ids=PROMPT)
            self.output_processor.add_request(request, None, None, i)
        self._activate(slots, len(PROMPT) - 1)
        finished = False
        try:
            words = (WORDS * 4)[: params.max_tokens] if params.max_tokens > 8 else WORDS[: params.max_tokens]
            for k, word in enumerate(words):
                at = len(PROMPT) + k
                self.drawn += params.n
                for index, generation in slots:
                    draws = {ENTROPY: np.ones(1, "f4"), LOGPROB: -np.ones(1, "f4")}
                    self.table.write(Source.DRAW, *self._key(index, generation, at), draws)
                if k:
                    self._activate(slots, at - 1)
                finished = k == len(words) - 1
                if finished and self.ahead:
                    self._activate(slots, at)
                ended = self._taken(running, 10 + k, finished)
                outputs = []
                for i, name in enumerate(running):
                    finish, stop = self.reasons if finished else ("abort" if name in ended else None, None)
                    outputs.append(
                        CompletionOutput(i, word, [10 + k], None, None, finish_reason=finish, stop_reason=stop)
                    )
                finished = finished or len(ended) == len(running)
                yield RequestOutput(request_id, None, PROMPT, None, outputs, finished)
                running = [name for name in running if name not in ended]
                if finished:
                    return
        finally:
            self.aborted += not finished

    def _taken(self, running: list[str], token: int, finished: bool) -> list[str]:
        """Tell the processor of a step's outputs; the names of those that it wants ended."""
        for name in running if finished else ():
            del self.output_processor.request_states[name]
        outputs = [SimpleNamespace(request_id=name, new_token_ids=[token]) for name in running]
        ended: list[str] = self.output_processor.process_outputs(outputs).reqs_to_abort
        self.ended += ended
        return ended

    def _activate(self, slots: list[list[int]], at: int) -> None:
        for seat_number, (index, generation) in enumerate(slots):
            score = self.score(at, seat_number, self._scale)
            self.table.write(Source.FORWARD, *self._key(index, generation, at), {NEURONS: np.full(1, score, "f4")})

    @staticmethod
    def _key(index: int, generation: int, at: int) -> tuple[Any, Any, Any]:
        return np.array([index]), np.array([generation], np.uint32), np.array([at])


@contextmanager
def over_script(bundle: Bundle, slots: int) -> Iterator[GuardedEngine]:
    scripted = ScriptedEngine()
    table = scripted.table = ScoreTable.create(slots, positions=32)
    yield GuardedEngine(scripted, bundle, table, Policy(Mode.SCORE, 0.5))
    table.unlink()


@pytest.fixture
def engine(bundle: Bundle) -> Iterator[GuardedEngine]:
    with over_script(bundle, slots=2) as made:
        yield made


async def texts(
    engine: GuardedEngine, policy: Policy, n: int = 1, stop_after: int = 99, longest: int = 8
) -> tuple[list[str], RequestContext]:
    params = SamplingParams(n=n, max_tokens=longest, output_kind=RequestOutputKind.DELTA)
    seen = []
    with use_context(RequestContext(policy)) as call:
        stream = engine.generate({"type": "token", "prompt_token_ids": PROMPT}, params, "r")
        async for output in stream:
            seen.append("".join(c.text for c in output.outputs))
            if len(seen) == stop_after:
                await stream.aclose()
                break
    return seen, call


async def test_text_flows_and_the_verdict_comes_with_the_end(engine: GuardedEngine) -> None:
    seen, call = await texts(engine, Policy(Mode.FLAG, 0.5))
    assert seen == WORDS
    signals = call.verdicts[0].signals
    assert signals is not None
    assert signals.prompt_score == 2
    np.testing.assert_array_equal(signals["neurons"], [3, 4, 5, np.nan])
    assert engine.pool.in_use == 0


async def test_token_risks_run_one_token_behind(engine: GuardedEngine) -> None:
    policy = Policy(Mode.SCORE, 0.5, token_risk_in_stream=True)
    params = SamplingParams(max_tokens=8, output_kind=RequestOutputKind.DELTA)
    known = []
    with use_context(RequestContext(policy)) as call:
        async for _ in engine.generate({"type": "token", "prompt_token_ids": PROMPT}, params, "r"):
            known.append(list(call.token_risks[0]))
    assert [len(risks) for risks in known] == [1, 2, 4, 4]
    assert None not in known[1]
    assert known[3][3] is None


async def test_withheld_text_never_leaves(engine: GuardedEngine) -> None:
    seen, call = await texts(engine, Policy(Mode.ABSTAIN, 0.0), n=2)
    assert seen == ["", ""]
    assert sorted(call.verdicts) == [0, 1]


async def test_what_passes_abstain_mode_is_whole(engine: GuardedEngine) -> None:
    seen, _ = await texts(engine, Policy(Mode.ABSTAIN, 1.1))
    assert seen == WORDS


async def test_an_abandoned_stream_aborts_and_frees(engine: GuardedEngine) -> None:
    await texts(engine, Policy(Mode.SCORE, 0.5), stop_after=1)
    assert engine.pool.in_use == 0
    assert engine._engine.aborted == 1


async def test_no_free_slot_is_a_503_before_the_response_starts(engine: GuardedEngine) -> None:
    held = engine.pool.claim(2)
    closed = engine.default_policy = Policy(Mode.SCORE, 0.5, fail=Fail.CLOSED)
    with pytest.raises(GracefulHTTPError, match="all 2 score slots") as caught:
        engine.check_admission(1)
    assert caught.value.http_status == 503
    with pytest.raises(GracefulHTTPError):
        await texts(engine, closed)
    with use_context(RequestContext(Policy(Mode.OFF, 0.5))):
        engine.check_admission(1)
    engine.pool.release(held, finished=True)
    engine.check_admission(2)
    assert engine._engine.admitted == [1, 2]


async def test_no_free_slot_passes_unscored_where_the_guard_fails_open(engine: GuardedEngine) -> None:
    held = engine.pool.claim(2)
    for policy in (Policy(Mode.SCORE, 0.5), Policy(Mode.ABSTAIN, 0.0, fail=Fail.OPEN)):
        with use_context(RequestContext(policy)):
            engine.check_admission(1)
        seen, call = await texts(engine, policy)
        assert seen == WORDS
        assert (call.verdicts[0].risk, call.verdicts[0].reason) == (None, Unscored.NO_SLOT)
        assert call.verdicts[0].decision.action is Action.PASS
    engine.pool.release(held, finished=True)


async def test_without_a_call_the_operators_default_applies(engine: GuardedEngine) -> None:
    engine.default_policy = Policy(Mode.ABSTAIN, 0.0)
    params = SamplingParams(max_tokens=8, output_kind=RequestOutputKind.DELTA)
    stream = engine.generate({"type": "token", "prompt_token_ids": PROMPT}, params, "r")
    assert [output.outputs[0].text async for output in stream] == [""]


async def test_a_client_cannot_choose_its_own_slot(engine: GuardedEngine) -> None:
    params = SamplingParams(
        max_tokens=8, output_kind=RequestOutputKind.DELTA, extra_args={capture.KEY: {"slots": [[9, 9]]}}
    )
    with use_context(RequestContext(Policy(Mode.SCORE, 0.5))) as call:
        async for _ in engine.generate({"type": "token", "prompt_token_ids": PROMPT}, params, "r"):
            pass
    assert call.verdicts[0].risk is not None


def test_scaled_requests_are_salted_each_by_its_strength(engine: GuardedEngine) -> None:
    prompt = {"type": "token", "prompt_token_ids": PROMPT}
    assert engine.salts.salted(prompt, 1.0) is prompt
    salts = {
        engine.salts.salted({**prompt, "cache_salt": own}, scale)["cache_salt"] for own in "ab" for scale in (0.0, 0.5)
    }
    assert len(salts) == 4


def test_no_salt_of_a_caller_names_a_scaled_prefix(engine: GuardedEngine, bundle: Bundle) -> None:
    prompt = {"type": "token", "prompt_token_ids": PROMPT}
    scaled = engine.salts.salted(prompt, 0.5)["cache_salt"]
    public = hashlib.sha256(f"|{bundle.card.tensors_sha256}|0.5".encode()).hexdigest()  # all of it is in /v1/probe
    plain = {
        own: engine.salts.salted({**prompt, "cache_salt": own}, 1.0)["cache_salt"] for own in (scaled, public, "own")
    }
    assert scaled not in plain.values()
    assert public not in (scaled, *plain.values())
    assert len({*plain.values()}) == 3, "what callers keep apart stays apart"
    assert engine.salts.salted(prompt, 0.5)["cache_salt"] == scaled, "a scaled prefix is found again"
    restarted = GuardedEngine(engine._engine, bundle, engine.table, engine.default_policy)
    assert restarted.salts.salted(prompt, 0.5)["cache_salt"] != scaled
    for scale in (0.5, 1.0):
        assert engine.salts.salted({**prompt, "cache_salt": "\ud800"}, scale)


@pytest.fixture
def looking(foreseeing: Bundle) -> Iterator[GuardedEngine]:
    with over_script(foreseeing, slots=4) as made:
        yield made


RISK = 1 / (1 + np.exp(-2))  # of the scripted lead score, which is its position


async def test_a_risky_prompt_is_refused_before_generation(looking: GuardedEngine) -> None:
    seen, call = await texts(looking, Policy(Mode.ABSTAIN, 1.1, prompt_threshold=RISK - 0.01), n=3)
    assert seen == [""]
    assert looking._engine.drawn == 1, "one token looks, for all three answers"
    assert sorted(call.verdicts) == [0, 1, 2]
    for verdict in call.verdicts.values():
        assert verdict.prompt_refused
        assert verdict.decision.action is Action.ABSTAINED
        assert verdict.risk == verdict.prompt_risk == pytest.approx(RISK)
        assert verdict.scored_tokens == 0
    assert looking.pool.in_use == 0
    assert call.usage_adjustment.total() == 1 - 3, "usage shows a token for each answer, and one was drawn"


async def test_a_prompt_that_is_not_risky_is_answered(looking: GuardedEngine) -> None:
    seen, call = await texts(looking, Policy(Mode.ABSTAIN, 1.1, prompt_threshold=RISK + 0.01))
    assert seen == WORDS
    verdict = call.verdicts[0]
    assert not verdict.prompt_refused
    assert verdict.prompt_risk == pytest.approx(RISK), "what was prompt_risk is reported beside what came"
    assert looking.pool.in_use == 0


async def test_leaving_while_the_engine_looks_frees_everything(looking: GuardedEngine) -> None:
    params = SamplingParams(max_tokens=8, output_kind=RequestOutputKind.DELTA)
    with use_context(RequestContext(Policy(Mode.ABSTAIN, 1.1, prompt_threshold=0.1))):
        stream = looking.generate({"type": "token", "prompt_token_ids": PROMPT}, params, "r")
        await anext(stream)
        await stream.aclose()
    assert looking.pool.in_use == 0


async def test_a_second_try_answers_when_its_risk_passes(engine: GuardedEngine) -> None:
    engine._engine.score = lambda at, sequence, scale: 9.0 if scale else -9.0
    seen, call = await texts(engine, Policy(Mode.ABSTAIN, 0.5, retry_scale=0.0))
    assert seen == WORDS
    verdict = call.verdicts[0]
    assert verdict.decision.action is Action.PASS
    assert verdict.risk < 0.5 <= verdict.first_risk
    assert call.usage_adjustment.total() == 8, "of the first try's length no more than was withheld"
    assert engine.pool.in_use == 0


async def test_a_second_try_that_does_not_pass_is_withheld(engine: GuardedEngine) -> None:
    engine._engine.score = lambda at, sequence, scale: 9.0
    seen, call = await texts(engine, Policy(Mode.ABSTAIN, 0.5, retry_scale=0.0))
    assert seen == [""]
    assert call.verdicts[0].decision.action is Action.ABSTAINED
    assert call.verdicts[0].first_risk is not None


@pytest.mark.parametrize("hold", list(Hold))
async def test_token_risks_are_those_of_the_try_that_answers(engine: GuardedEngine, hold: Hold) -> None:
    """What was withheld leaves nothing beside the answer that took its place."""
    engine._engine.score = lambda at, sequence, scale: 9.0 if scale and at > len(PROMPT) else -9.0
    retried = Policy(Mode.ABSTAIN, 0.5, retry_scale=0.0, token_risk_in_stream=True, hold=hold)
    _, call = await texts(engine, retried, longest=16)
    _, alone = await texts(engine, Policy(Mode.ABSTAIN, 0.5, scale=0.0, token_risk_in_stream=True), longest=16)
    if call.verdicts[0].decision.action is Action.PASS:
        assert call.verdicts[0].first_risk is not None
        assert call.token_risks == alone.token_risks
    else:
        assert hold is Hold.NONE, "some of the first try had left, so there is no second"


async def test_a_third_try_tells_the_risk_of_the_very_first(
    engine: GuardedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Half(Stage):
        def again(self, policy: Policy) -> float | None:
            return 0.5

    monkeypatch.setattr(client, "STAGES", (Half(), Retry()))
    engine._engine.score = lambda at, sequence, scale: {1.0: 9.0, 0.5: 5.0, 0.0: -9.0}[scale]
    seen, call = await texts(engine, Policy(Mode.ABSTAIN, 0.5, retry_scale=0.0))
    assert seen == WORDS
    _, alone = await texts(engine, Policy(Mode.SCORE, 0.5))
    assert call.verdicts[0].first_risk == pytest.approx(alone.verdicts[0].risk)


async def test_only_withheld_answers_are_tried_again(engine: GuardedEngine) -> None:
    engine._engine.score = lambda at, sequence, scale: 9.0 if scale and sequence == 1 else -9.0
    params = SamplingParams(n=2, max_tokens=8, output_kind=RequestOutputKind.FINAL_ONLY)
    with use_context(RequestContext(Policy(Mode.ABSTAIN, 0.5, retry_scale=0.0))) as call:
        outputs = [o async for o in engine.generate({"type": "token", "prompt_token_ids": PROMPT}, params, "r")]
    assert len(outputs) == 1
    assert [completion.index for completion in outputs[0].outputs] == [0, 1]
    assert [call.verdicts[i].first_risk is None for i in (0, 1)] == [True, False]
    assert [call.verdicts[i].decision.action for i in (0, 1)] == [Action.PASS, Action.PASS]
    assert engine._engine.drawn == 3 * len(WORDS)


async def test_an_answer_that_passes_has_one_try(engine: GuardedEngine) -> None:
    engine._engine.score = lambda at, sequence, scale: -9.0
    _, call = await texts(engine, Policy(Mode.ABSTAIN, 0.5, retry_scale=0.0))
    assert call.verdicts[0].first_risk is None
    assert engine._engine.drawn == len(WORDS)


async def test_the_engine_stops_when_an_answer_is_decided(engine: GuardedEngine) -> None:
    engine._engine.score = lambda at, sequence, scale: 9.0
    seen, call = await texts(engine, Policy(Mode.ABSTAIN, 0.5), longest=16)
    assert seen == [""]
    assert engine._engine.drawn == 8, "four windows of four, known with the eighth token"
    assert engine._engine.ended == ["0_r-0-x"]
    assert call.verdicts[0].scored_tokens == 7
    assert engine.pool.in_use == 0


async def test_outputs_that_come_past_the_watch_pass_for_nothing(engine: GuardedEngine) -> None:
    """As where another version of vLLM hands them on in another way."""
    engine._engine._taken = lambda *_: []
    with pytest.raises(TapError, match="came past the watch"):
        await texts(engine, Policy(Mode.ABSTAIN, 0.5))
    assert engine.pool.in_use == 0


async def test_a_stream_that_flows_ends_with_the_first_window_that_is_risky(engine: GuardedEngine) -> None:
    engine._engine.score = lambda at, sequence, scale: 9.0
    _, call = await texts(engine, Policy(Mode.ABSTAIN, 0.5, hold=Hold.WINDOW), longest=16)
    assert engine._engine.drawn == 5, "a window of four, known with the fifth token"
    assert call.verdicts[0].scored_tokens == 4


@pytest.mark.parametrize("reasons", [("length", None), ("stop", "by"), ("stop", 13), ("stop", None)])
async def test_the_last_token_s_own_score_is_left_out_whatever_the_schedule(
    engine: GuardedEngine, reasons: tuple[str, Any]
) -> None:
    """With asynchronous scheduling it may exist: the engine begins a step before it knows of the stop."""
    engine._engine.reasons = reasons
    said = []
    for ahead in (False, True):
        engine._engine.ahead = ahead
        _, call = await texts(engine, Policy(Mode.SCORE, 0.5, token_risk_in_stream=True))
        signals = call.verdicts[0].signals
        assert signals is not None
        assert np.isnan(signals[NEURONS][-1]) == (reasons != ("stop", None)), "before the end of the sequence it exists"
        said.append((call.verdicts[0].risk, call.verdicts[0].token_risks, call.token_risks[0]))
    assert said[0] == said[1]


async def test_one_of_two_sequences_is_ended_alone(engine: GuardedEngine) -> None:
    engine._engine.score = lambda at, sequence, scale: 9.0 if sequence == 1 else -9.0
    await texts(engine, Policy(Mode.ABSTAIN, 0.5), n=2, longest=16)
    assert engine._engine.ended == ["1_r-0-x"]
    assert engine._engine.aborted == 0, "the other ran to its end"


async def test_leaving_during_the_second_try_frees_everything(engine: GuardedEngine) -> None:
    engine._engine.score = lambda at, sequence, scale: 9.0 if scale else -9.0
    _, _ = await texts(engine, Policy(Mode.ABSTAIN, 0.5, retry_scale=0.0, hold=Hold.NONE), stop_after=1)
    assert engine.pool.in_use == 0
