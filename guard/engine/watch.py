"""Judges the windows of all answers that a step completes in one pass, where answers can be withheld midway.

vLLM hands a step's outputs to one task for each request. Reading the table and working out a risk in each of them would
take longer than all that vLLM does there. So the windows are judged together, as soon as vLLM has taken the outputs and
before any task sees them; an answer that ends is ended in the engine within the step. A window below its answer's
threshold is done with. What reaches it, and where a value is missing, is left to ``Answer.look``, which decides.

vLLM's task that takes the outputs of all requests ends with its first error, and every request with it: an error that
one answer causes is kept for that answer's own task. Written against vLLM 0.32 (``v1/engine/output_processor.py``; the
same in 0.26).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.engine.answer import Answer
from guard.engine.gate import OutputGate
from guard.ipc.score_table import ScoreTable
from guard.probe.readout import Readout
from guard.probe.signals import Source, TokenSignals

log = logging.getLogger("hguard")
# A window this near to its threshold is looked at alone: sums over many rows may be rounded otherwise.
_NEAR = 1e-9


class StepWatch:
    """Follows the sequences of engine requests, by vLLM's names. For one event loop."""

    def __init__(self, table: ScoreTable) -> None:
        self._table = table
        self._gates: dict[str, tuple[OutputGate, list[str]]] = {}  # by request, with its sequences
        self._followed: dict[str, tuple[OutputGate, Answer]] = {}  # by sequence

    def attach(self, processor: Any) -> None:
        """Have an engine's output processor tell of each sequence that it takes on, and of each step's outputs."""
        add, process = processor.add_request, processor.process_outputs

        def added(request: Any, *rest: Any, **named: Any) -> None:
            add(request, *rest, **named)
            if (found := self._gates.get(request.external_req_id)) is not None:
                (gate, names), name = found, request.request_id
                sequence = processor.request_states[name].request_index
                try:
                    gate.begin(sequence, request.prompt_token_ids)
                except Exception as error:
                    gate.fault = error
                names.append(name)
                self._followed[name] = gate, gate.answers[sequence]

        def processed(outputs: Any, *rest: Any, **named: Any) -> Any:
            result = process(outputs, *rest, **named)
            if self._followed:
                result.reqs_to_abort.extend(_ended(processor, self._step(outputs, processor.request_states)))
            return result

        processor.add_request, processor.process_outputs = added, processed

    @contextmanager
    def following(self, name: str, gate: OutputGate) -> Iterator[None]:
        """Follow the sequences of the request of this name from its first output on."""
        names: list[str] = []
        self._gates[name] = gate, names
        try:
            yield
        finally:
            del self._gates[name]
            for one in names:
                self._followed.pop(one, None)

    def _step(self, outputs: Iterable[Any], running: Any) -> list[str]:
        """The names of sequences that a window ends. ``running``: those that vLLM has not ended itself."""
        began = time.perf_counter()
        due: dict[str, tuple[OutputGate, Answer]] = {}
        try:
            for output in outputs:
                name = output.request_id
                if (found := self._followed.get(name)) is None:
                    continue
                gate, answer = found
                if not answer.reasoning_open:  # as ``extend``; this is done for each token of each answer
                    answer.token_ids += output.new_token_ids
                    if len(answer.token_ids) < answer.look_at:
                        continue
                else:
                    try:
                        answer.extend(output.new_token_ids, False)
                    except Exception as error:
                        gate.fault = error
                if name in running and gate.fault is None:
                    due[name] = found
                else:
                    del self._followed[name]  # its own task judges it
            self.look(due.values())
        except Exception as error:  # of ours: no answer may pass for it, and no other request end
            log.exception("looking at a step's answers failed")
            for gate, _ in self._followed.values():
                gate.fault = error
        ended = [name for name, (_, answer) in due.items() if answer.midway is not None]
        for name in ended:
            del self._followed[name]
        share = (time.perf_counter() - began) / max(len(due), 1)
        for gate, _ in due.values():
            gate.call.overhead_seconds += share
        return ended

    def look(self, followed: Iterable[tuple[OutputGate, Answer]]) -> None:
        """Judge the windows that are complete by now; an answer that one of them ends has its verdict in ``midway``.
        Note the risks of tokens where they go out with them.

        Of an answer that leaves as a whole, if at all, once for as many tokens as a window has: so many may be in vain.
        """
        windows: dict[int, list[tuple[OutputGate, Answer, int]]] = {}  # by readout, with how many there are
        tokens: dict[int, list[tuple[OutputGate, Answer]]] = {}
        for gate, answer in followed:
            if gate.withholds and not answer.unscorable:
                width = gate.readout.window
                further, enough = answer.complete(width) - answer.windows_scored, width if gate.holds_all else 1
                if further >= enough:
                    windows.setdefault(id(gate.readout), []).append((gate, answer, further))
                elif not gate.tells_tokens and len(answer.token_ids) > answer.reasoning_tokens:
                    answer.look_at = len(answer.token_ids) + enough - further
            fed = len(answer.token_ids) - 1  # and so have scores
            if gate.tells_tokens and len(gate.known_risks(answer)) == fed - 1 >= answer.reasoning_tokens:
                tokens.setdefault(id(gate.readout), []).append((gate, answer))
        for group in windows.values():
            worst = self._worst(group[0][0].readout, [(answer, further) for _, answer, further in group])
            for (gate, answer, further), risk in zip(group, worst, strict=True):
                if risk < gate.call.policy.threshold - _NEAR:
                    answer.windows_scored += further
                else:  # NaN, too
                    self._look_alone(gate, answer)
        for told in tokens.values():
            found = self._token_risks(told[0][0].readout, [answer for _, answer in told])
            for (gate, answer), one, whole in zip(told, *found, strict=True):
                if whole:  # else the gate works it out
                    gate.known_risks(answer).append(one)

    def _look_alone(self, gate: OutputGate, answer: Answer) -> None:
        try:
            answer.midway = answer.look(self._table, gate.readout, gate.call.policy)
        except Exception as error:
            gate.fault = error

    def _token_risks(self, readout: Readout, answers: list[Answer]) -> tuple[list[float | None], list[bool]]:
        """The risk of each answer's last token but one, the last that has a score of its own; and whether all that was
        measured on it is there."""
        slot, generation, position = _columns([answer.last_scored() for answer in answers])
        try:
            values, whole = self._read(readout, slot, generation, position[:, None])
            risks = readout.token_risks(TokenSignals({}, {name: one[:, 0] for name, one in values.items()}))
        except Exception:
            log.exception("the probe failed on a step's tokens")
            return [None] * len(answers), [False] * len(answers)
        return risks, [True] * len(answers) if whole is None else whole.tolist()

    def _worst(self, readout: Readout, answers: list[tuple[Answer, int]]) -> list[float]:
        """The highest risk of the next windows of each answer, of which it says how many; NaN where a value is missing,
        or all of them where the probe fails on one."""
        rows = [row for answer, further in answers for row in answer.next_windows(further)]
        risks = self._risks(readout, *_columns(rows))
        if len(rows) == len(answers):
            return risks.tolist()
        begins = np.cumsum([0, *(further for _, further in answers[:-1])])
        return np.maximum.reduceat(risks, begins).tolist()  # NaN where one is

    def _risks(
        self,
        readout: Readout,
        slot: NDArray[np.int64],
        generation: NDArray[np.int64],
        first: NDArray[np.int64],
        place: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """The risks of windows, as ``Answer.next_windows`` has them: float64 [windows]."""
        try:
            values, whole = self._read(readout, slot, generation, first[:, None] + np.arange(readout.window))
            opening, before = np.flatnonzero(place == 0), {}
            if len(opening):
                last = first[opening, None] - 1  # of the prompt
                leads, led = self._table.read_rows(Source.FORWARD, slot[opening], generation[opening], last)
                before = {name: one[:, 0] for name, one in leads.items()}
                if led is not None:
                    whole = np.ones(len(slot), np.bool_) if whole is None else whole
                    whole[opening] &= led
            risks = readout.window_risks(values, opening, before, place)
        except Exception:  # whatever it is; each is looked at alone
            log.exception("the probe failed on a step's windows")
            return np.full(len(slot), np.nan)
        return risks if whole is None else np.where(whole, risks, np.nan)

    def _read(
        self, readout: Readout, slot: NDArray[np.int64], generation: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_] | None]:
        """As ``ScoreTable.read_rows``, of all sources that the readout uses."""
        values, whole = self._table.read_rows(Source.FORWARD, slot, generation, positions)
        if readout.uses_draws:
            drawn, also = self._table.read_rows(Source.DRAW, slot, generation, positions)
            values |= drawn
            whole = also if whole is None else whole if also is None else whole & also
        return values, whole


def _columns(rows: list[tuple[int, ...]]) -> NDArray[np.int64]:
    return np.array(rows, np.int64).T


def _ended(processor: Any, names: list[str]) -> list[str]:
    """End these sequences in vLLM's front end, and say which its engine has to end."""
    if not names:
        return []
    parents = [processor.request_states[name].parent_req for name in names]
    ended: list[str] = processor.abort_requests(names, internal=True)
    for parent in parents:  # which vLLM forgets once their last sequence has finished, or all are aborted at once
        if parent is not None and not parent.child_requests:
            processor.parent_requests.pop(parent.request_id, None)
    return ended
