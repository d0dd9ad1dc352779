"""One forward pass: whose rows it holds, what was measured on them, and where that goes. Knows no runner."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from guard.ipc.capture import CaptureParams
from guard.ipc.rows import rows_of_call
from guard.ipc.score_table import ScoreTable
from guard.probe.signals import ALWAYS, ENTROPY, LOGPROB, MARGIN, TOP_MASS, Source

Measured = dict[str, torch.Tensor]  # signals of one source by name, float32 [rows] each


@dataclass(frozen=True, slots=True)
class BatchParams:
    """The captures of a batch's requests, as arrays [requests] in batch order.

    start: first position to record. known: how many tokens are known beforehand (the prompt). given: whether the
    prompt's own tokens are scored. drawn: whether the distributions behind the tokens are measured. apart: whether each
    neuron is summed by itself.
    """

    slot: NDArray[np.int64]
    generation: NDArray[np.uint32]
    scale: NDArray[np.float32]
    start: NDArray[np.int64]
    known: NDArray[np.int64]
    given: NDArray[np.bool_]
    drawn: NDArray[np.bool_]
    apart: NDArray[np.bool_]
    # Asked for in every step, and the same until the batch changes.
    any_recorded: bool = field(init=False)
    any_drawn: bool = field(init=False)
    any_given: bool = field(init=False)
    any_scaled: bool = field(init=False)
    any_apart: bool = field(init=False)

    def __post_init__(self) -> None:
        for name, value in (
            ("any_recorded", self.slot >= 0),
            ("any_drawn", self.drawn),
            ("any_given", self.given & self.drawn),
            ("any_scaled", self.scale != 1),
            ("any_apart", self.apart),
        ):
            object.__setattr__(self, name, bool(value.any()))

    @classmethod
    def of(cls, captures: Sequence[CaptureParams], prompt_lengths: Sequence[int]) -> BatchParams:
        return cls(
            np.array([s.slot for s in captures], np.int64),
            np.array([s.generation for s in captures], np.uint32),
            np.array([s.scale for s in captures], np.float32),
            np.array(
                [n - 1 if s.start is None else s.start for s, n in zip(captures, prompt_lengths, strict=True)], int
            ),
            np.array(prompt_lengths, np.int64),
            np.array([s.forced for s in captures], np.bool_),
            np.array([s.slot >= 0 and s.draws for s in captures], np.bool_),
            np.array([s.slot >= 0 and s.apart for s in captures], np.bool_),
        )

    def put(self, index: int, capture: CaptureParams, prompt_length: int) -> None:
        """Overwrite one entry."""
        self.slot[index], self.generation[index], self.scale[index] = capture.slot, capture.generation, capture.scale
        self.start[index] = prompt_length - 1 if capture.start is None else capture.start
        self.known[index], self.given[index] = prompt_length, capture.forced
        self.drawn[index] = capture.slot >= 0 and capture.draws
        self.apart[index] = capture.slot >= 0 and capture.apart

    def take(self, index: NDArray[np.intp]) -> BatchParams:
        """The entries at ``index``, in that order."""
        return BatchParams(
            self.slot[index],
            self.generation[index],
            self.scale[index],
            self.start[index],
            self.known[index],
            self.given[index],
            self.drawn[index],
            self.apart[index],
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a step's tensors and the positions that they measure; all arrays [rows].

    row: into the tensor. owner: into the batch. position: in the owner's sequence.
    """

    row: NDArray[np.int64]
    owner: NDArray[np.int64]
    position: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row)

    def where(self, chosen: NDArray[np.bool_]) -> Rows:
        return self if chosen.all() else Rows(self.row[chosen], self.owner[chosen], self.position[chosen])


class Step:
    """A batch's requests, how far each had come (``computed``), and how many rows each has now (``scheduled``)."""

    def __init__(self, captured: BatchParams, computed: NDArray[np.int64], scheduled: NDArray[np.int64]) -> None:
        self.captured, self.computed, self.scheduled = captured, computed, scheduled
        self.rows = int(scheduled.sum())
        self.recorded, self.drawn = captured.any_recorded, captured.any_drawn

    def activations(self) -> Rows:
        """Rows of the forward pass that are recorded: those of a capture with a slot, from its first position on."""
        rows = self._rows()
        captured, owner = self.captured, rows.owner
        return rows.where((captured.slot >= 0)[owner] & (rows.position >= captured.start[owner]))

    def every(self) -> Rows:
        """Rows of a capture with a slot, wherever they stand."""
        rows = self._rows()
        return rows.where((self.captured.slot >= 0)[rows.owner])

    def _rows(self) -> Rows:
        """All rows of the forward pass."""
        count = len(self.scheduled)
        owner = np.arange(count)
        if self.rows == count:
            return Rows(owner, owner, self.computed)
        owner = owner.repeat(self.scheduled)
        row = np.arange(self.rows)
        first = np.cumsum(self.scheduled) - self.scheduled
        return Rows(row, owner, row + (self.computed - first)[owner])

    def draws(self, ready: NDArray[np.bool_], positions: int) -> Rows:
        """One row for each request whose draw is measured: it is ``ready`` (prefilled), and fits into the table."""
        owner = np.arange(len(self.scheduled))
        drawn_at = self.computed + self.scheduled
        return Rows(owner, owner, drawn_at).where(ready & self.captured.drawn & (drawn_at < positions))

    def given(self, activations: Rows) -> Rows:
        """Among ``activations``, the rows whose next token is given and therefore measured like a draw."""
        captured, owner = self.captured, activations.owner
        if not captured.any_given:
            return Rows(*(np.empty(0, np.int64),) * 3)
        return activations.where(
            (captured.given & captured.drawn)[owner] & (activations.position + 1 < captured.known[owner])
        )


@dataclass(slots=True)
class StepCapture:
    """What one step measured, and where it belongs; on the device until ``to_host``.

    measured: by source, rows and what they index.
    """

    captured: BatchParams
    measured: list[tuple[Source, Rows, Measured]] = field(default_factory=list)

    def to_host(self) -> StepCapture:
        """Copies on their way to the host (pinned, asynchronous from CUDA): wait for the stream before a deposit."""
        copies = [
            (source, rows, {name: values.to("cpu", non_blocking=True) for name, values in signals.items()})
            for source, rows, signals in self.measured
        ]
        return StepCapture(self.captured, copies)

    def deposit(self, table: ScoreTable) -> None:
        """Write everything into the table. The tensors must be on the host."""
        captured = self.captured
        for source, rows, signals in self.measured:
            slot, generation = captured.slot[rows.owner], captured.generation[rows.owner]
            values = {name: tensor.numpy()[rows.row] for name, tensor in signals.items()}
            table.write(source, slot, generation, rows.position, values)


def measure_given(
    rows: Rows,
    hidden: torch.Tensor,
    compute_logits: Callable[[torch.Tensor], torch.Tensor | None],
    tokens: NDArray[np.int64],
    vocabulary: int,
    table: ScoreTable | None,
) -> list[tuple[Source, Rows, Measured]]:
    """The signals of draws of given tokens [rows], each drawn one row before its own; those that ``table`` has a place
    for, which the one rank that writes has.

    Every rank must call this: ``compute_logits`` gathers the vocabulary over them, and returns None on those that do
    not sample.
    """
    measured, wanted = [], ALWAYS if table is None else table.measured
    step = rows_of_call(vocabulary)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        index = torch.from_numpy(rows.row[part]).to(hidden.device, non_blocking=True)
        logits = compute_logits(hidden[index])
        if logits is None:
            continue
        found = Statistics.of(logits, wanted)
        chosen = torch.from_numpy(tokens[part]).to(hidden.device, non_blocking=True)
        # Positions are those of the tokens, one after the rows that draw them.
        own = Rows(np.arange(len(logits)), rows.owner[part], rows.position[part] + 1)
        measured.append((Source.DRAW, own, found.signals(logits, chosen)))
    return measured


# Values whose float32 copy stays in a core's cache; a temporary of a whole large batch costs several times as much.
_CACHED = 1 << 18
# exp(-200) is 0 in float32, and 0 * -200 is 0 where 0 * -inf (a token that the model rules out) is not.
_NEGLIGIBLE = -200.0
_LIKELIEST = 10  # tokens in TOP_MASS


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of each row of logits [rows, vocabulary]: entropy in nats and log of the sum of exponentials, float32 [rows];
    likeliest: what else is wanted of their distributions, by name."""

    entropy: torch.Tensor
    normaliser: torch.Tensor
    likeliest: Measured = field(default_factory=dict)

    @classmethod
    def of(cls, logits: torch.Tensor, wanted: Collection[str] = ALWAYS) -> Statistics:
        entropy, normaliser = _moments(logits)
        return cls(entropy, normaliser, _of_likeliest(logits, normaliser, wanted))

    def signals(self, logits: torch.Tensor, tokens: torch.Tensor) -> Measured:
        """The signals of a draw of one token of each row, tokens int64 [rows]; logits may be masked but at those."""
        chosen = logits.gather(1, tokens[:, None])[:, 0].float()
        return {ENTROPY: self.entropy, LOGPROB: chosen - self.normaliser, **self.likeliest}


def _of_likeliest(logits: torch.Tensor, normaliser: torch.Tensor, wanted: Collection[str]) -> Measured:
    """MARGIN and TOP_MASS, float32 [rows], where one is wanted; normaliser [rows]: 0 of log-probabilities."""
    if MARGIN not in wanted and TOP_MASS not in wanted:
        return {}
    top = logits.topk(min(_LIKELIEST, logits.shape[1])).values.float()
    return {MARGIN: top[:, 0] - top[:, 1], TOP_MASS: (top - normaliser[:, None]).exp().sum(1)}


def _moments(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if logits.is_cuda:
        from guard.worker.kernels import row_statistics

        return row_statistics(logits)
    step = max(1, _CACHED // logits.shape[1])
    if logits.shape[0] <= step:
        return _statistics(logits)
    entropy, normaliser = zip(*(_statistics(part) for part in torch.split(logits, step)), strict=True)
    return torch.cat(entropy), torch.cat(normaliser)


def _statistics(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # H = log S - T / S with d = x - max x, S = sum exp d, T = sum d exp d.
    logits = logits.float()
    peak = logits.amax(-1, keepdim=True)
    distance = (logits - peak).clamp_min_(_NEGLIGIBLE)
    weight = distance.exp()
    total = weight.sum(-1)
    log_total = total.log()
    return log_total - weight.mul_(distance).sum(-1).div_(total), log_total + peak[:, 0]


class Room:
    """Memory for the logits of a step, used again in the next: made anew in each, tens of megabytes cost more in page
    faults than all that is done with them."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def kept(self, logits: torch.Tensor) -> torch.Tensor:
        """A copy, in float32, which the next one overwrites."""
        if self._memory.numel() < logits.numel():
            self._memory = torch.empty(logits.numel())
        return self._memory[: logits.numel()].view_as(logits).copy_(logits)


class Drawn:
    """The distributions of one step, measured before anything is drawn from them.

    Sampling changes float32 logits in place, so what a draw's log-probability needs is kept. The normalised logits
    themselves where they are few: that takes fewer calls than anything else.
    """

    def __init__(self, logits: torch.Tensor, wanted: Collection[str] = ALWAYS, room: Room | None = None) -> None:
        """logits [rows, vocabulary], on the CPU; ``wanted``: the signals to measure; ``room``: where logits are kept
        until the next are."""
        self._statistics: Statistics | None = None
        if logits.numel() <= _CACHED:
            self._kept = logits.float().log_softmax(-1).clamp_min_(_NEGLIGIBLE)
            self._entropy = -(self._kept.exp().mul_(self._kept).sum(-1))
            self._likeliest = _of_likeliest(self._kept, torch.zeros(len(logits)), wanted)
        else:
            self._statistics = Statistics.of(logits, wanted)
            self._kept = (room or Room()).kept(logits) if logits.dtype is torch.float32 else logits

    def signals(self, tokens: torch.Tensor) -> Measured:
        """The signals of a draw of one token of each row: tokens int64 [rows]."""
        if self._statistics is None:
            logprob = self._kept.gather(1, tokens[:, None])[:, 0]
            return {ENTROPY: self._entropy, LOGPROB: logprob, **self._likeliest}
        return self._statistics.signals(self._kept, tokens)
