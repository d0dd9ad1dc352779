"""What the API process tells the worker about one request, inside ``SamplingParams.extra_args``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guard.ipc.score_table import Slot

KEY = "hguard"
SELF_TEST = "hguard-self-test"  # so the names of its requests begin, by which an engine that stands in knows them


@dataclass(frozen=True, slots=True)
class CaptureParams:
    """Where the worker leaves one sequence's measurements, and how it is scaled.

    slot: row of the table, -1 when nothing is to be recorded.
    start: first position to record (the last prompt token); None: the prompt's own length says it.
    draws: whether the distributions that tokens are drawn from are measured too (entropy, log-probability).
    apart: whether what each neuron contributes is summed over the recorded positions, by itself.
    """

    slot: int = -1
    generation: int = 0
    scale: float = 1.0
    start: int | None = None
    draws: bool = True
    apart: bool = False

    @property
    def forced(self) -> bool:
        """Whether given text is scored: its tokens are part of the prompt, and their draws are recorded too."""
        return self.start is not None


EMPTY = CaptureParams()


def pack(
    slots: Sequence[Slot], scale: float, start: int | None = None, draws: bool = True, apart: bool = False
) -> dict[str, Any]:
    """The value under KEY for a request with one slot for each of its n sequences (none: nothing is recorded)."""
    claimed = [[s.index, s.generation] for s in slots]
    return {"slots": claimed, "scale": scale, "start": start, "draws": draws, "apart": apart}


def unpack(extra_args: Mapping[str, Any] | None, request_id: str) -> CaptureParams:
    """The capture of one engine request. vLLM names the n sequences of a request ``{i}_{request id}``."""
    packed = (extra_args or {}).get(KEY)
    if packed is None:
        return EMPTY
    slots = packed["slots"]
    if not slots:
        return CaptureParams(scale=packed["scale"])
    index = int(request_id.split("_", 1)[0]) if len(slots) > 1 else 0
    slot, generation = slots[index]
    return CaptureParams(slot, generation, packed["scale"], packed["start"], packed["draws"], packed["apart"])
