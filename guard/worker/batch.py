"""One forward pass: whose rows it holds, what was measured on them, and where that goes. Knows no runner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from guard.ipc.capture import CaptureParams
from guard.ipc.rows import rows_of_call
from guard.ipc.score_table import ScoreTable


@dataclass(frozen=True, slots=True)
class BatchParams:
    """The captures of a batch's requests, as arrays [requests] in batch order.

    start: first position to record. known: how many tokens are known beforehand (the prompt). given: whether the
    prompt's own tokens are scored. drawn: whether the distributions behind the tokens are measured.
    """

    slot: NDArray[np.int64]
    generation: NDArray[np.uint32]
    scale: NDArray[np.float32]
    start: NDArray[np.int64]
    known: NDArray[np.int64]
    given: NDArray[np.bool_]
    drawn: NDArray[np.bool_]
    # Asked for in every step, and the same until the batch changes.
    any_recorded: bool = field(init=False)
    any_drawn: bool = field(init=False)
    any_given: bool = field(init=False)
    any_scaled: bool = field(init=False)

    def __post_init__(self) -> None:
        for name, value in (
            ("any_recorded", self.slot >= 0),
            ("any_drawn", self.drawn),
            ("any_given", self.given & self.drawn),
            ("any_scaled", self.scale != 1),
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
        )

    def put(self, index: int, capture: CaptureParams, prompt_length: int) -> None:
        """Overwrite one entry."""
        self.slot[index], self.generation[index], self.scale[index] = capture.slot, capture.generation, capture.scale
        self.start[index] = prompt_length - 1 if capture.start is None else capture.start
        self.known[index], self.given[index] = prompt_length, capture.forced
        self.drawn[index] = capture.slot >= 0 and capture.draws

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
        count = len(self.scheduled)
        owner = np.arange(count)
        if self.rows == count:
            row, position = owner, self.computed
        else:
            owner = owner.repeat(self.scheduled)
            row = np.arange(self.rows)
            first = np.cumsum(self.scheduled) - self.scheduled
            position = row + (self.computed - first)[owner]
        seated = (self.captured.slot >= 0)[owner] & (position >= self.captured.start[owner])
        return Rows(row, owner, position).where(seated)

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

    activations: rows and the step's scores, float32 [rows of the step].
    draws: rows, and the entropy and log-probability in nats that they index, float32.
    """

    captured: BatchParams
    activations: tuple[Rows, torch.Tensor] | None = None
    draws: list[tuple[Rows, torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def to_host(self) -> StepCapture:
        """Copies on their way to the host (pinned, asynchronous from CUDA): wait for the stream before a deposit."""

        def copy(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to("cpu", non_blocking=True)

        activations = self.activations and (self.activations[0], copy(self.activations[1]))
        return StepCapture(self.captured, activations, [(rows, copy(e), copy(p)) for rows, e, p in self.draws])

    def deposit(self, table: ScoreTable) -> None:
        """Write everything into the table. The tensors must be on the host."""
        captured = self.captured
        if self.activations is not None:
            rows, score = self.activations
            slot, generation = captured.slot[rows.owner], captured.generation[rows.owner]
            table.write_activations(slot, generation, rows.position, score.numpy()[rows.row])
        for rows, entropy, logprob in self.draws:
            slot, generation = captured.slot[rows.owner], captured.generation[rows.owner]
            entropies, logprobs = entropy.numpy()[rows.row], logprob.numpy()[rows.row]
            table.write_draws(slot, generation, rows.position, entropies, logprobs)


def measure_given(
    rows: Rows,
    hidden: torch.Tensor,
    compute_logits: Callable[[torch.Tensor], torch.Tensor | None],
    tokens: NDArray[np.int64],
    vocabulary: int,
) -> list[tuple[Rows, torch.Tensor, torch.Tensor]]:
    """Entropy and log-probability of given tokens [rows], each drawn one row before its own.

    Every rank must call this: ``compute_logits`` gathers the vocabulary over them, and returns None on those that do
    not sample.
    """
    measured = []
    step = rows_of_call(vocabulary)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        index = torch.from_numpy(rows.row[part]).to(hidden.device, non_blocking=True)
        logits = compute_logits(hidden[index])
        if logits is None:
            continue
        entropy, normaliser = statistics(logits)
        chosen = torch.from_numpy(tokens[part]).to(hidden.device, non_blocking=True)
        # Positions are those of the tokens, one after the rows that draw them.
        own = Rows(np.arange(len(logits)), rows.owner[part], rows.position[part] + 1)
        measured.append((own, entropy, log_probability(logits, normaliser, chosen)))
    return measured


# Values whose float32 copy stays in a core's cache; a temporary of a whole large batch costs several times as much.
_CACHED = 1 << 18
# exp(-200) is 0 in float32, and 0 * -200 is 0 where 0 * -inf (a token that the model rules out) is not.
_NEGLIGIBLE = -200.0


def statistics(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(entropy in nats, log of the sum of exponentials) of each row: [rows, vocabulary] -> float32 [rows] each."""
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


def log_probability(logits: torch.Tensor, normaliser: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability in nats of one token of each row: tokens int64 [rows] -> float32 [rows]."""
    return logits.gather(1, tokens[:, None])[:, 0].float() - normaliser


class Drawn:
    """The distributions of one step, measured before anything is drawn from them.

    Sampling changes float32 logits in place, so what a draw's log-probability needs is kept. The normalised logits
    themselves where they are few: that takes fewer calls than anything else.
    """

    def __init__(self, logits: torch.Tensor) -> None:
        """logits [rows, vocabulary], on the CPU."""
        if logits.numel() <= _CACHED:
            self._kept = logits.float().log_softmax(-1).clamp_min_(_NEGLIGIBLE)
            self.entropy = -(self._kept.exp().mul_(self._kept).sum(-1))
            self._normaliser: torch.Tensor | None = None
        else:
            self.entropy, self._normaliser = statistics(logits)
            self._kept = logits.clone() if logits.dtype is torch.float32 else logits

    def log_probability(self, tokens: torch.Tensor) -> torch.Tensor:
        """Of one token of each row, in nats: tokens int64 [rows] -> float32 [rows]."""
        if self._normaliser is None:
            return self._kept.gather(1, tokens[:, None])[:, 0]
        return log_probability(self._kept, self._normaliser, tokens)
