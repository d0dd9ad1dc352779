"""What an engine that collects keeps of its sequences: where in each layer, and over which of their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from guard.probe.signals import DISTANCE

KEY = "hguard_collect"  # of ``VllmConfig.additional_config``, which vLLM hands to every worker


class Site(StrEnum):
    """A place in each layer.

    NEURONS: |z| / ||h|| of every neuron of the MLP (z and h: ``guard.probe.cett``). OUTPUT: h, the MLP's output.
    RESIDUAL: the normed residual stream, which is what queries, keys and values are made of. ATTENTION: the heads'
    outputs side by side, before they are projected. BLOCK: the residual stream as a layer leaves it, not normed.
    """

    NEURONS = "neurons"
    OUTPUT = "output"
    RESIDUAL = "residual"
    ATTENTION = "attention"
    BLOCK = "block"

    @property
    def sharded(self) -> bool:
        """Whether each rank has columns of its own; of the others every rank has all."""
        return self in (Site.NEURONS, Site.ATTENTION)


def site_of(signal: str) -> Site:
    """Where a signal of states is read (``guard.probe.signals``: OF_STATES)."""
    return Site.RESIDUAL if signal == DISTANCE else Site(signal)


NAMES = {  # what has to be built for a site
    Site.RESIDUAL: "QKVParallelLinear named model.layers.N.self_attn.qkv_proj",
    Site.ATTENTION: "RowParallelLinear named model.layers.N.self_attn.o_proj",
    Site.BLOCK: "layer named model.layers.N",
}


class Part(StrEnum):
    """Tokens of a sequence whose mean is kept.

    SPAN: those that were asked for, and the one before them: of a greedy answer all that were fed back, and the last
    prompt token. LAST_PROMPT: the span's first position alone. QUESTION: the prompt from the user's words on.
    """

    SPAN = "span"
    LAST_PROMPT = "last_prompt"
    QUESTION = "question"


Table = tuple[Site, Part]  # the means of one array


@dataclass(frozen=True, slots=True)
class Collecting:
    """slots: how many sequences are read at once. sites: beside NEURONS and OUTPUT. question: whether the question's
    tokens are read, too, and not the span's alone. neurons: whether NEURONS and OUTPUT are."""

    slots: int
    sites: tuple[Site, ...] = ()
    question: bool = False
    neurons: bool = True

    @classmethod
    def find(cls, additional_config: Any) -> Collecting | None:
        """What ``additional_config`` says, or None."""
        found = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
        if found is None:
            return None
        return cls(found["slots"], tuple(map(Site, found["sites"])), found["question"], found["neurons"])

    def additional_config(self) -> dict[str, Any]:
        return {KEY: asdict(self)}

    @property
    def parts(self) -> tuple[Part, ...]:
        """In the order of their blocks of accumulators."""
        return (Part.SPAN, Part.LAST_PROMPT, *((Part.QUESTION,) if self.question else ()))

    def blocks(self, site: Site) -> int:
        """How many parts are kept at a site: of the output only the first one."""
        return 1 if site is Site.OUTPUT else len(self.parts)
