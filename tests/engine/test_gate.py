"""What leaves when: a gate is fed outputs and a table, without any engine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from guard.engine.answer import Answer
from guard.engine.context import RequestContext, Unscored
from guard.engine.gate import OutputGate
from guard.engine.watch import StepWatch
from guard.ipc.score_table import ScoreTable, SlotPool
from guard.policy import Action, Fail, Hold, Mode, Policy
from guard.probe.bundle import Bundle
from guard.probe.readout import Peak, Readout
from guard.probe.signals import ALWAYS, DISTANCE, NEURONS, Source, names

PROMPT = [5, 6, 7]
EOS = 1
SAFE, RISKY = -9.0, 9.0  # neuron scores; a window of four has the risk of their mean
DELTA, CUMULATIVE, FINAL = RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE, RequestOutputKind.FINAL_ONLY


@dataclass
class Play:
    """One answer: the score of each token (None: never written), and how the engine ends it."""

    scores: Sequence[float | None]
    finish: str = "length"


class Stage:
    """Writes the table as the worker would, and feeds the outputs, one token each. ``far``: the distance of the last
    prompt token, measured where there is one; all others' is 0."""

    def __init__(self, readout: Readout, far: float | None = None) -> None:
        self.far = far
        self.table = ScoreTable.create(4, 64, ALWAYS if far is None else ALWAYS | {DISTANCE})
        self.watch = StepWatch(self.table)
        self.pool = SlotPool(4)
        self.readout = readout

    def play(
        self, policy: Policy, *plays: Play, kind: RequestOutputKind = DELTA, seen: bool = True, **more: Any
    ) -> Any:
        """All outputs, and the call. An answer that is cut is played no further."""
        slots = self.pool.claim(len(plays)) if seen else []
        answers = [Answer(i, slots[i] if seen else None, i, Unscored.NO_SLOT) for i in range(len(plays))]
        call = RequestContext(policy)
        gate = OutputGate(answers, call, self.table, self.readout, kind, EOS, **more)
        out: list[tuple[int, Any]] = []
        for step in range(max(len(play.scores) for play in plays)):
            if gate.done:
                break
            completions = []
            for sequence, play in enumerate(plays):
                if step >= len(play.scores) or answers[sequence].verdict is not None:
                    continue
                if seen:
                    self._write(slots[sequence], step, play.scores)
                last = step == len(play.scores) - 1
                ids = list(range(100, 101 + step)) if kind is not DELTA else [100 + step]
                text = "".join(f"w{k} " for k in range(step + 1)) if kind is not DELTA else f"w{step} "
                completions.append(
                    CompletionOutput(sequence, text, ids, None, None, finish_reason=play.finish if last else None)
                )
            finished = all(c.finish_reason for c in completions)
            output = RequestOutput("r", None, PROMPT, None, completions, finished)
            if gate.followed:
                self._look(gate, completions, step)
            out += [(step, o) for o in gate.feed(output)]
        self.pool.release(slots, True)
        return SimpleNamespace(out=out, call=call, gate=gate, verdicts=call.verdicts)

    def _look(self, gate: OutputGate, completions: list[CompletionOutput], step: int) -> None:
        """As the watch does once vLLM has taken a step's outputs."""
        running = []
        for completion in completions:
            answer = gate.answers[completion.index] if step else gate.begin(completion.index, PROMPT)
            answer.extend([100 + step], False)
            if completion.finish_reason is None:
                running.append((gate, answer))
        self.watch.look(running)

    def _write(self, slot: Any, step: int, scores: Sequence[float | None]) -> None:
        key = (np.array([slot.index]), np.array([slot.generation], np.uint32))
        at = len(PROMPT) + step
        self.table.write(Source.DRAW, *key, np.array([at]), {name: np.zeros(1, "f4") for name in names(Source.DRAW)})
        # A token's own score exists when it is fed back: with the output of the next one.
        score = SAFE if step == 0 else scores[step - 1]
        if score is not None:
            values = {NEURONS: np.full(1, score, "f4"), DISTANCE: np.full(1, 0 if step else self.far or 0, "f4")}
            self.table.write(Source.FORWARD, *key, np.array([at - 1]), values)


@pytest.fixture
def stage(bundle: Bundle) -> Iterator[Stage]:
    made = Stage(bundle.readout)
    yield made
    made.table.unlink()


def texts(played: Any, sequence: int = 0) -> list[str]:
    return [c.text for _, o in played.out for c in o.outputs if c.index == sequence]


def policy(hold: Hold = Hold.ANSWER, **more: Any) -> Policy:
    return Policy(Mode.ABSTAIN, 0.5, hold=hold, **more)


LONG = Play([SAFE] * 8 + [RISKY] * 4 + [SAFE] * 8)  # the window of tokens 7 to 10 is the first that reaches .5


def test_without_a_hold_text_flows_until_a_window_ends_the_answer(stage: Stage) -> None:
    played = stage.play(policy(Hold.NONE), LONG)
    assert [step for step, _ in played.out] == list(range(len(played.out)))
    assert texts(played) == [*(f"w{k} " for k in range(11)), ""]
    last = played.out[-1][1].outputs[0]
    assert (last.finish_reason, last.token_ids) == ("content_filter", [EOS] * (16 - 11))
    assert played.verdicts[0].decision.action is Action.ABSTAINED
    assert played.verdicts[0].sent_tokens == 11
    assert (played.verdicts[0].peak.start, played.verdicts[0].peak.end) == (7, 11)
    assert played.gate.done
    assert played.gate.ended_midway, "the engine is told at once"


def test_with_windows_held_no_token_of_a_risky_window_leaves(stage: Stage) -> None:
    played = stage.play(policy(Hold.WINDOW), LONG)
    assert texts(played) == [*(f"w{k} " for k in range(7)), ""]
    assert played.verdicts[0].sent_tokens == 7 == played.verdicts[0].peak.start
    assert len(played.out[-1][1].outputs[0].token_ids) == 16 - 7, "usage counts twelve tokens as sixteen"
    # Each token leaves as soon as the last window that it lies in has been scored: its three successors' scores.
    assert [step for step, _ in played.out[:-1]] == [k + 4 for k in range(7)]


def test_with_the_answer_held_nothing_leaves_before_the_verdict(stage: Stage) -> None:
    played = stage.play(policy(), LONG)
    assert texts(played) == [""]
    assert played.out[0][0] == 11, "the verdict comes as early as without a hold"
    safe = stage.play(policy(), Play([SAFE] * 6))
    assert texts(safe) == [f"w{k} " for k in range(6)]
    assert {step for step, _ in safe.out} == {5}


@pytest.mark.parametrize("hold", list(Hold))
def test_what_passes_is_whole(stage: Stage, hold: Hold) -> None:
    played = stage.play(policy(hold), Play([SAFE] * 20, finish="stop"))
    assert texts(played) == [f"w{k} " for k in range(20)]
    assert played.out[-1][1].finished
    assert played.verdicts[0].decision.action is Action.PASS


def test_a_short_answer_is_one_window_and_decided_at_its_end(stage: Stage) -> None:
    played = stage.play(policy(Hold.WINDOW), Play([RISKY] * 3))
    assert texts(played) == [""]
    assert played.out[0][0] == 2


def test_one_answer_ends_and_the_others_go_on(stage: Stage) -> None:
    played = stage.play(policy(Hold.NONE), LONG, Play([SAFE] * 20))
    assert texts(played, 1) == [f"w{k} " for k in range(20)]
    assert texts(played, 0)[-1] == ""
    assert [played.verdicts[i].decision.action for i in (0, 1)] == [Action.ABSTAINED, Action.PASS]
    assert [o.finished for _, o in played.out].count(True) == 1


@pytest.mark.parametrize("mode", [Mode.SCORE, Mode.FLAG])
def test_modes_that_withhold_nothing_end_nothing(stage: Stage, mode: Mode) -> None:
    played = stage.play(Policy(mode, 0.5, hold=Hold.ANSWER), LONG)
    assert texts(played) == [f"w{k} " for k in range(20)]
    assert [step for step, _ in played.out] == list(range(20))
    assert played.verdicts[0].risk > 0.5


def test_what_ends_an_answer_early_would_have_flagged_all_of_it(stage: Stage) -> None:
    early = stage.play(policy(), LONG).verdicts[0]
    whole = stage.play(Policy(Mode.FLAG, 0.5), LONG).verdicts[0]
    assert whole.decision.flagged
    assert 0.5 <= early.risk <= whole.risk


def test_whole_answers_come_together_in_order(stage: Stage) -> None:
    played = stage.play(policy(), Play([SAFE] * 9), LONG, Play([SAFE] * 3), kind=FINAL)
    ((_, only),) = played.out
    assert [c.index for c in only.outputs] == [0, 1, 2]
    assert [c.finish_reason for c in only.outputs] == ["length", "content_filter", "length"]
    assert only.outputs[1].text == ""
    assert only.outputs[1].token_ids == [EOS] * 16
    assert only.outputs[0].text == "".join(f"w{k} " for k in range(9))
    assert only.finished


def test_cumulative_outputs_are_emptied_whole(stage: Stage) -> None:
    played = stage.play(policy(Hold.WINDOW), LONG, kind=CUMULATIVE)
    assert texts(played)[-2:] == ["".join(f"w{k} " for k in range(7)), ""]
    assert len(played.out[-1][1].outputs[0].token_ids) == 16


def test_what_is_spared_is_not_spoken_of(stage: Stage) -> None:
    played = stage.play(policy(), LONG, Play([SAFE] * 3), retry_follows=True)
    assert texts(played, 0) == []
    assert texts(played, 1) == ["w0 ", "w1 ", "w2 "]
    assert [answer.index for answer in played.gate.retryable] == [0]
    shown = stage.play(policy(Hold.NONE), LONG, retry_follows=True)
    assert shown.gate.retryable == [], "what has been shown cannot be taken back"
    assert texts(shown)[-1] == ""


HOLE = Play([SAFE] * 8 + [None] + [SAFE] * 9)
NOT_A_NUMBER = Play([SAFE] * 8 + [float("nan")] + [SAFE] * 9)


@pytest.mark.parametrize(("play", "reason"), [(HOLE, Unscored.MISSING), (NOT_A_NUMBER, Unscored.NOT_FINITE)])
def test_an_answer_without_a_score_is_never_of_low_risk(stage: Stage, play: Play, reason: Unscored) -> None:
    for mode in (Mode.SCORE, Mode.FLAG):
        verdict = stage.play(Policy(mode, 0.5), play).verdicts[0]
        assert (verdict.risk, verdict.reason, verdict.decision.action) == (None, reason, Action.PASS)
    closed = stage.play(policy(Hold.WINDOW), play)
    assert closed.verdicts[0].reason is reason
    assert closed.verdicts[0].decision.action is Action.ABSTAINED
    assert texts(closed) == [*(f"w{k} " for k in range(5)), ""], "the windows before the hole had passed"
    for hold in Hold:
        opened = stage.play(policy(hold, fail=Fail.OPEN), play)
        assert opened.verdicts[0].reason is reason
        assert texts(opened) == [f"w{k} " for k in range(18)]


def test_many_answers_at_once_end_where_each_alone_would(stage: Stage) -> None:
    """Of random scores, some missing; in one pass over a step, and one by one."""
    rng = np.random.default_rng(11)
    for _ in range(20):
        scores = rng.normal(-1.5, 4, (4, 24))
        plays = [Play([None if rng.random() < 0.01 else float(x) for x in row]) for row in scores]
        for fail, hold in itertools.product(Fail, Hold):
            together = stage.play(policy(hold, fail=fail), *plays)
            for sequence, play in enumerate(plays):
                alone = stage.play(policy(hold, fail=fail), play)
                one, other = together.verdicts[sequence], alone.verdicts[0]
                assert (one.risk, one.reason, one.peak) == (other.risk, other.reason, other.peak)
                assert (one.sent_tokens, one.decision) == (other.sent_tokens, other.decision)
                assert texts(together, sequence) == texts(alone)


def test_windows_that_pass_are_not_looked_at_alone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    look = Answer.look
    monkeypatch.setattr(Answer, "look", lambda self, *rest: (looked.append(self.sequence), look(self, *rest))[1])
    stage.play(policy(Hold.NONE), LONG, Play([SAFE] * 20))
    assert looked == [0], "the one that ends"


def test_an_error_of_one_answer_is_its_own(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(Readout, "window_risks", broken)
    assert stage.play(policy(), LONG).verdicts[0].decision.action is Action.ABSTAINED, "each is looked at alone"
    monkeypatch.setattr(Answer, "look", broken)
    with pytest.raises(ZeroDivisionError):
        stage.play(policy(), LONG)


def test_failing_closed_in_score_mode_withholds_what_is_left(stage: Stage) -> None:
    played = stage.play(Policy(Mode.SCORE, 0.5, fail=Fail.CLOSED), HOLE)
    assert played.out[-1][1].outputs[0].finish_reason == "content_filter"
    assert played.verdicts[0].sent_tokens == 17
    whole = stage.play(Policy(Mode.SCORE, 0.5, fail=Fail.CLOSED), HOLE, kind=FINAL)
    assert texts(whole) == [""]


def test_a_probe_that_raises_leaves_the_answer_unscored(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(Readout, "risk", broken)
    assert stage.play(Policy(Mode.SCORE, 0.5), LONG).verdicts[0].reason is Unscored.PROBE_ERROR
    closed = stage.play(policy(Hold.NONE), LONG)
    assert (closed.verdicts[0].reason, texts(closed)[-1]) == (Unscored.PROBE_ERROR, "")
    opened = stage.play(policy(Hold.NONE, fail=Fail.OPEN), LONG)
    assert texts(opened) == [f"w{k} " for k in range(20)], "a probe's failure does not cut an answer that is to pass"
    assert opened.verdicts[0].reason is Unscored.PROBE_ERROR


def test_an_empty_answer_passes_without_a_score(stage: Stage) -> None:
    played = stage.play(policy(), Play([SAFE], finish="stop"))
    assert (played.verdicts[0].reason, played.verdicts[0].decision.action) == (Unscored.EMPTY, Action.PASS)


def test_without_a_slot_text_is_not_held(stage: Stage) -> None:
    played = stage.play(policy(fail=Fail.OPEN), LONG, seen=False)
    assert [step for step, _ in played.out] == list(range(20))
    assert played.verdicts[0].reason is Unscored.NO_SLOT


class Reasoning:
    """Thinks until token 103 has been said; 104 says nothing."""

    def begin(self, prompt_ids: Sequence[int], request: Any) -> Any:
        return SimpleNamespace(ended_by=lambda ids: ids[-1] == 103, followed_by=lambda ids: set(ids) > {104})


def test_thoughts_are_not_scored(stage: Stage) -> None:
    thinking = Play([RISKY] * 3 + [SAFE] * 9)
    played = stage.play(policy(Hold.WINDOW, token_risk_in_stream=True), thinking, reasoning=Reasoning())
    verdict = played.verdicts[0]
    assert verdict.decision.action is Action.PASS
    assert verdict.token_ids == list(range(104, 112)), "the answer begins after what ends the thinking"
    risks = played.call.token_risks[0]
    assert risks[:4] == [None] * 4
    assert None not in risks[4:11]
    assert texts(played) == [f"w{k} " for k in range(12)]
    assert {step for step, _ in played.out} == {11}, "thoughts wait for all of the answer, and it for them"
    flowing = stage.play(policy(Hold.NONE), thinking, reasoning=Reasoning())
    assert [step for step, _ in flowing.out] == list(range(12))
    alone = stage.play(policy(), Play([SAFE] * 8)).verdicts[0]
    assert verdict.risk == pytest.approx(alone.risk), "the same tokens after the same lead have the same risk"


@pytest.mark.parametrize(("far", "known"), [(0.5, True), (2.0, False), (None, None)])
def test_the_domain_is_the_question_s_and_not_that_of_thoughts(
    bundle: Bundle, far: float | None, known: bool | None
) -> None:
    """Which may be withheld, and would show one bit of themselves."""
    stage = Stage(replace(bundle.readout, distance_limit=1.0), far)
    try:
        withheld = stage.play(policy(), Play([RISKY] * 8)).verdicts[0]
        assert withheld.decision.action is Action.ABSTAINED
        assert withheld.in_domain is known
        thinking = stage.play(policy(), Play([RISKY] * 3 + [SAFE] * 9), reasoning=Reasoning()).verdicts[0]
        assert thinking.risk is not None
        assert thinking.in_domain is None
    finally:
        stage.table.unlink()


def test_thinking_that_never_ends_has_no_answer(stage: Stage) -> None:
    played = stage.play(Policy(Mode.SCORE, 0.5), Play([SAFE] * 3), reasoning=Reasoning())
    assert played.verdicts[0].reason is Unscored.UNFINISHED_THINKING
    for hold in (Hold.WINDOW, Hold.ANSWER):
        for tokens in (3, 4, 5):  # in the midst of the thoughts, at their end, after what says nothing
            closed = stage.play(policy(hold), Play([SAFE] * tokens), reasoning=Reasoning())
            assert closed.verdicts[0].reason is Unscored.UNFINISHED_THINKING
            assert texts(closed) == [""]
    assert texts(stage.play(policy(), Play([SAFE] * 6), reasoning=Reasoning())) == [f"w{k} " for k in range(6)]


def test_a_later_window_keeps_the_thoughts_back(stage: Stage) -> None:
    late = Play([SAFE] * 12 + [RISKY] * 4 + [SAFE] * 8)
    played = stage.play(policy(Hold.WINDOW), late, reasoning=Reasoning())
    assert texts(played) == [""]
    assert played.verdicts[0].sent_tokens == 0


def test_what_was_given_of_a_turn_is_scored_with_it(stage: Stage) -> None:
    """Two tokens of the prompt belong to the turn: the lead is that of the token before them."""
    (slot,) = stage.pool.claim(1)
    key = np.full(5, slot.index), np.full(5, slot.generation, np.uint32)
    scores = np.array([1.0, 5.0, 6.0, -7.0, 0.5], "f4")  # of the prompt's three tokens and of two drawn ones
    stage.table.write(Source.FORWARD, *key, np.arange(5), {NEURONS: scores})
    stage.table.write(Source.DRAW, *key, np.arange(5), {name: np.zeros(5, "f4") for name in names(Source.DRAW)})
    answer = Answer(0, slot, prompt_length=3, token_ids=[100, 101, EOS], given=2)
    verdict = answer.judge(stage.table, stage.readout, policy(), ended=True)
    whole = Answer(0, slot, prompt_length=1, token_ids=[6, 7, 100, 101, EOS])
    expected = whole.judge(stage.table, stage.readout, policy(), ended=True)
    assert verdict.risk == expected.risk
    assert verdict.prompt_risk == expected.prompt_risk
    assert (verdict.token_ids, verdict.scored_tokens, expected.scored_tokens) == ([100, 101], 2, 4)
    assert verdict.peak == Peak(0, 2)
    assert whole.signals(stage.table, 0, 4).prompt_score == answer.signals(stage.table, -2, 2).prompt_score == 1.0
    stage.pool.release([slot], True)
